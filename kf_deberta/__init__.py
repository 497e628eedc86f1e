"""The modules behind the scripts, in rooms: data, model, training, evaluation, export."""
