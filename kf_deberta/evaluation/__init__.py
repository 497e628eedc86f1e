"""Embeddings to figures: scoring, bootstrap, results, reports."""
