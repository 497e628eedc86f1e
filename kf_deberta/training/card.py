"""The model card of a finished run, from the template card.md."""

import json
import re
from argparse import Namespace
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from kf_deberta.data.official import BLOB_IDS
from kf_deberta.errors import write_atomically
from kf_deberta.evaluation.report import COMPARABLE_ROWS, escape_markdown, markdown
from kf_deberta.evaluation.scoring import FIGURES

TEMPLATE = Path(__file__).with_name("card.md")
EXAMPLES = [
    "은행에서 예금을 만기로 인출하는 고객이 있다.",
    "만기가 된 정기예금을 찾으러 손님이 은행에 왔다.",
    "주식 시장에서 한 투자자가 주식을 매수한다.",
]
PUBLISHED = 5  # rows of the published table
TEST = "KorSTS/sts-test.tsv"


def stage_rows(stage: str, objectives: list, state, args: Namespace) -> list[dict[str, str]]:
    """Describe what a stage trained on, a row for each objective; `state` is that of its end."""
    rows = []
    for objective in objectives:
        loss, kinds = objective.loss, []
        while loss is not None:  # a MatryoshkaLoss has another one inside, and so has a cached one
            kinds.append(type(loss).__name__)
            inner, scale = getattr(loss, "loss", None), getattr(loss, "scale", None)
            loss = inner if type(loss).__name__ == "MatryoshkaLoss" else None
        row = {"stage": stage} if stage else {}
        size, batch = len(objective.rows), objective.batches.batch_size
        row |= {"trained on": f"{size:,} {objective.name.upper()} rows in batches of {batch}"}
        row |= {"loss": " over ".join(kinds) + (f", scale {scale:g}" if scale else "")}
        row |= {"rounds": f"{state.round:,}", "learning rate": f"{args.learning_rate:g}", "seed": str(args.seed)}
        rows.append(row | {"dev cosine Spearman": f"{100 * state.best_score:.2f} (round {state.best_round:,})"})
    return rows


def write_card(model: SentenceTransformer, facts: dict, directory: Path) -> None:
    """Write README.md of a run from its facts, those of results.json, into its directory."""
    base, args = facts["base"], facts["args"]
    on_hub = facts["base_on_hub"]
    trained = [name for name in facts["trained_on"] if "train" in name]
    test = {name: value for name, value in facts["test"].items() if name in FIGURES}
    official = facts["data"].get(TEST) == BLOB_IDS[TEST]
    shared_alike = any(facts["trained_on"][name] == BLOB_IDS.get(name) for name in trained)
    title = f"Korean sentence embeddings from {base}"
    data = ModelCardData(
        language=["ko"],
        license="cc-by-sa-4.0" if shared_alike else None,  # CC BY-SA of the data requires the same license
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction"],
        datasets=["kakaobrain/kor_nlu"] if shared_alike else None,
        base_model=base if on_hub else None,
        widget=[{"source_sentence": EXAMPLES[0], "sentences": EXAMPLES[1:]}],
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="semantic-similarity",
                task_name="Semantic Similarity",
                dataset_type=f"sts-{split}",
                dataset_name=f"KorSTS {split}" if official else f"sts-{split}",
                metric_type="_".join(reversed(name.split("_"))),
                metric_name=name.replace("_", " ").title(),
                metric_value=facts[split][name],
            )
            for split in ("test", "dev")
            for name in FIGURES
        ],
    )
    stages = facts["stages"]
    header = list(stages[0])
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        **_usage(model, directory),
        plain=escape_markdown,
        title=title,
        base=f"[{base}](https://huggingface.co/{base})" if on_hub else escape_markdown(base),
        kf_deberta="kf-deberta" in base.lower(),
        script=facts["script"],
        sources=sorted({name.partition("/")[0] for name in trained}),
        others=[name for name, blob in facts["trained_on"].items() if name in trained and BLOB_IDS.get(name) != blob],
        dims=[dim for dim in args.get("matryoshka_dims") or [] if dim < model.get_embedding_dimension()],
        official=official,
        shared_alike=shared_alike,
        pairs=facts["test_pairs"],
        figures=[(name.replace("_", " ").title(), facts["baseline"][name], value) for name, value in test.items()],
        prefixes=[
            (name.partition("_")[0], facts["baseline"][name], value)
            for name, value in facts["test"].items()
            if re.fullmatch(r"\d+_cosine_spearman", name)
        ],
        published=COMPARABLE_ROWS[:PUBLISHED] if official else [],
        stages=markdown(header, [[row[name] for name in header] for row in stages], texts=header),
        kept=facts["kept"],
        dev=facts["dev"]["cosine_spearman"],
        settings=_settings(facts).items(),
        architecture=str(model),
    )
    with write_atomically(directory / "README.md") as path:
        path.write_text(f"{card}\n", encoding="utf-8")


def _settings(facts: dict) -> dict[str, str]:
    args = facts["args"]
    warmup = args["warmup_steps"]
    settings = {"base model": facts["base"] + (f", commit {facts['base_revision']}" if facts["base_revision"] else "")}
    apart = "AdamW of its own for each objective, which take turns" if len(facts["stages"]) > 1 else "AdamW"
    settings["optimizer"] = (
        f"{apart}; weight decay {args['weight_decay']:g}, gradients clipped to norm {args['max_grad_norm']:g}"
    )
    share = f"the first {warmup:.0%} of the rounds" if warmup < 1 else f"{warmup:g} rounds"
    settings["schedule"] = f"{args['lr_scheduler_type']}, after a warm-up over {share}"
    settings["maximum length"] = f"{args['max_seq_length']} tokens"
    settings["precision"] = "bfloat16 autocast" if args["bf16"] else "float32"
    settings["processes"] = str(facts["processes"])
    settings["libraries"] = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    return settings


def add_onnx_usage(model: SentenceTransformer, directory: Path) -> bool:
    """Say in the card of a run in `directory` how its onnx/model.onnx is used; False if there is no such card."""
    path = directory / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, start, rest = text.partition("<!-- onnx -->")
    _, end, after = rest.partition("<!-- /onnx -->")
    if not end:
        return False
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"))
    section = "".join(template.blocks["onnx"](template.new_context(_usage(model, directory))))
    with write_atomically(path) as temporary:
        temporary.write_text(f"{before}{start}{section}\n{end}{after}", encoding="utf-8")
    return True


def _usage(model: SentenceTransformer, directory: Path) -> dict:
    """Return what the code blocks of the template need."""
    others = list(model)[1:]
    modes = [module.pooling_mode for module in others if isinstance(module, Pooling)]
    known = all(isinstance(module, Pooling | Normalize) for module in others) and modes in (["mean"], ["cls"])
    return {
        "examples": EXAMPLES,
        "quoted": lambda text: json.dumps(text, ensure_ascii=False),
        "dimension": model.get_embedding_dimension(),
        "hidden": model[0].get_embedding_dimension(),
        "max_seq_length": model.max_seq_length,
        "unit_length": isinstance(model[-1], Normalize),
        "plain_pooling": modes[0] if known else None,
        "pad_id": getattr(model.tokenizer, "pad_token_id", None),
        "pad_token": getattr(model.tokenizer, "pad_token", None),
        "onnx": (directory / "onnx" / "model.onnx").is_file(),
    }
