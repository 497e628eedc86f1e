"""What the teacher stage needs: fewer layers, and training sentences with the embeddings that a teacher gives them."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from kf_deberta.errors import InputError, write_atomically
from kf_deberta.model.load import describe, load_model
from kf_deberta.training.run import Run


def keep_layers(model: SentenceTransformer, numbers: list[int]) -> None:
    """Remove all layers of the encoder but these, counted from 0, in place; InputError if it has no such layer."""
    encoder = model[0].model
    layers = getattr(getattr(encoder, "encoder", None), "layer", [])  # of BERT, RoBERTa, ELECTRA, DeBERTa
    if len(layers) <= max(numbers):
        raise InputError(f"--keep_layers {max(numbers)}: the base has {len(layers)} layers (encoder.layer), from 0 on")
    encoder.encoder.layer = torch.nn.ModuleList(layers[number] for number in sorted(numbers))
    encoder.config.num_hidden_layers = len(numbers)


class TaughtSentences:
    """Rows {"sentence": text, "label": the teacher's embedding of it}, as the library's EmbedDistillLoss takes them.

    Each process embeds its share, once: teacher-<process>.npy of an unfinished run, float16, [rows, dimensions]. Made
    with the teacher, which `embed` uses and lets go; `name` is its name and commit, or "" if the share is there.
    InputError if the teacher is no embedding model, or has fewer dimensions than `args.teacher_dims`.
    """

    def __init__(self, args: Namespace, run: Run) -> None:
        self.number, self.args, self.name = run.accelerator.process_index, args, ""
        self.files = [run.directory / f"teacher-{process}.npy" for process in range(run.world)]
        if not self.files[self.number].exists():
            self.teacher = load_model(args.teacher)
            if (size := self.teacher.get_embedding_dimension()) < (args.teacher_dims or 0):
                raise InputError(f"--teacher_dims {args.teacher_dims}: {args.teacher} has {size} dimensions")
            self.name = Path(args.teacher).name if Path(args.teacher).is_dir() else args.teacher
            self.name += f", commit {self.teacher.revision}" if self.teacher.revision else ""

    def embed(self, sentences: list[str], run: Run) -> None:
        """Become the rows of these sentences."""
        if self.name:
            run.print(f"{self.name}: {describe(self.teacher)}, embeds {len(sentences):,} sentences")
            options = {"truncate_dim": self.args.teacher_dims, "batch_size": self.args.eval_batch_size}
            options["show_progress_bar"] = run.first
            with torch.autocast(self.teacher.device.type, torch.bfloat16, enabled=self.args.bf16):
                share = self.teacher.encode(sentences[self.number :: run.world], **options)
            with write_atomically(self.files[self.number]) as path, open(path, "wb") as file:
                np.save(file, share.astype(np.float16))
            del self.teacher
        run.accelerator.wait_for_everyone()
        self.sentences, self.shares = sentences, [np.load(file, mmap_mode="r") for file in self.files]
        self.dimensions = self.shares[0].shape[1]

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, row: int) -> dict:
        share = self.shares[row % len(self.shares)]
        return {"sentence": self.sentences[row], "label": share[row // len(self.shares)].astype(np.float32).tolist()}
