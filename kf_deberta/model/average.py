"""The mean of the weights of models that were trained from the same start: one model, no slower than each."""

from collections.abc import Sequence

from sentence_transformers import SentenceTransformer

from kf_deberta.cli import InputError


def average_weights(models: Sequence[SentenceTransformer], names: Sequence[str]) -> SentenceTransformer:
    """Give the first model the mean of all models' weights, as in "Model soups" (arXiv 2203.05482), and return it.

    Args:
        models: two or more; the sums are formed in float64.
        names: what error lines call them.

    Raises:
        InputError: a model has other modules, lengths, prompts, tensors or pieces than the first.
    """
    first, *others = map(_kind, models)
    for name, kind in zip(names[1:], others, strict=True):
        if differing := [what for what in first if kind[what] != first[what]]:
            raise InputError(f"{name}: other {differing[0]} than {names[0]}; average runs of one base and script")
    states = [model.state_dict() for model in models]
    mean = {
        name: (sum(state[name].double() for state in states) / len(states)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in states[0].items()
    }
    models[0].load_state_dict(mean)
    return models[0]


def _kind(model: SentenceTransformer) -> dict[str, object]:
    """What models must have in common."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    pieces = model.tokenizer.get_vocab() if hasattr(model.tokenizer, "get_vocab") else None
    return {"modules": str(model), "tensors": shapes, "pieces": pieces, "prompts": model.prompts}
