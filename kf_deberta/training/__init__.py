"""Batches to weights: flags, trainer, checkpoints, runs."""
