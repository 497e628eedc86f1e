"""Sentences to embeddings, and fast: loading, attention, CPU settings, exported graphs."""
