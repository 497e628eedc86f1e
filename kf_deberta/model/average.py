"""The mean of the weights of models that were trained from the same start: one model, no slower than each."""

import json
from collections.abc import Sequence
from pathlib import Path

import jinja2
from sentence_transformers import SentenceTransformer

from kf_deberta.cli import InputError, escape_markdown

TEMPLATE = Path(__file__).with_name("average.md")
NO_DIFFERENCE = ("_name_or_path", "transformers_version", "dtype")


def check_kind(models: Sequence[SentenceTransformer], names: Sequence[str]) -> None:
    """Raise InputError where models differ in modules, tensors, vocabulary, lengths, prompts or config.json.

    Args:
        models: two or more.
        names: what error lines call them.
    """
    first, *others = map(_kind, models)
    for name, kind in zip(names[1:], others, strict=True):
        if differing := [what for what in first if kind[what] != first[what]]:
            raise InputError(f"{name}: other {differing[0]} than {names[0]}; average runs of one base and script")


def average_weights(models: Sequence[SentenceTransformer]) -> SentenceTransformer:
    """Give the first model the mean of all models' weights, as in "Model soups" (arXiv 2203.05482), and return it.

    The models are of one kind, see check_kind. The sums are formed in float64, on the CPU.
    """
    states = [model.state_dict() for model in models]
    mean = {
        name: (sum(state[name].cpu().double() for state in states) / len(states)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in states[0].items()
    }
    models[0].load_state_dict(mean)
    return models[0]


def average_card(
    folder: str, kept: str, scores: list[tuple[str, float]], data: str, *, official: bool, trust: bool
) -> str:
    """Markdown of the card of a model folder.

    Args:
        folder: its path, as code that loads it is to name it.
        kept: the one of `scores` that the folder holds.
        scores: each model, the average last, with its cosine Spearman x100 on `data`.
        data: name of the scored file.
        official: it is KorSTS' own, so the card passes the license of the data on.
        trust: loading it takes Python code of its own.
    """
    environment = jinja2.Environment(keep_trailing_newline=True)
    environment.filters["plain"] = escape_markdown
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=Path(folder).name,
        quoted=json.dumps(folder, ensure_ascii=False),
        kept=kept,
        scores=scores,
        data=data,
        official=official,
        trust=trust,
    )


def _kind(model: SentenceTransformer) -> dict[str, object]:
    """What models must have in common."""
    encoder = getattr(model[0], "auto_model", None)  # static embeddings have none
    config = encoder.config.to_dict() if encoder is not None else {}
    return {
        "modules": str(model),
        "tensors": {name: tensor.shape for name, tensor in model.state_dict().items()},
        "vocabulary": model.tokenizer.get_vocab(),
        "max_seq_length": model.max_seq_length,
        "prompts": (model.prompts, model.default_prompt_name),
        "config.json": {name: value for name, value in config.items() if name not in NO_DIFFERENCE},
    }
