"""The model card of a finished run, from the template card.md."""

import itertools
import json
from argparse import Namespace
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize

from kf_deberta.data.official import BLOB_IDS
from kf_deberta.errors import write_atomically
from kf_deberta.evaluation.report import COMPARABLE_ROWS, escape_markdown, markdown
from kf_deberta.evaluation.scoring import FIGURES
from kf_deberta.model.load import plain_pooling

TEMPLATE = Path(__file__).with_name("card.md")
EXAMPLES = [
    "은행에서 예금을 만기로 인출하는 고객이 있다.",
    "만기가 된 정기예금을 찾으러 손님이 은행에 왔다.",
    "주식 시장에서 한 투자자가 주식을 매수한다.",
]
TEST = "KorSTS/sts-test.tsv"


def stage_rows(stage: str, objectives: list, state, args: Namespace) -> list[dict[str, str]]:
    """Describe what a stage trained on, a row for each objective; `state` is that of its end."""
    rows = []
    for objective in objectives:
        loss, size, batch = objective.loss, len(objective.rows), objective.batches.batch_size
        kind = type(loss).__name__
        if kind == "MatryoshkaLoss":
            loss = loss.loss
            kind += f" over {type(loss).__name__}"
        row = {"stage": stage} if stage else {}
        row |= {"trained on": f"{size:,} {objective.name.upper()} rows in batches of {batch}"}
        row |= {"loss": kind + (f", scale {loss.scale:g}" if hasattr(loss, "scale") else "")}
        row |= {"rounds": f"{state.round:,}", "learning rate": f"{args.learning_rate:g}", "seed": str(args.seed)}
        rows.append(row | {"dev cosine Spearman": f"{100 * state.best_score:.2f} (round {state.best_round:,})"})
    return rows


def write_card(model: SentenceTransformer, facts: dict, directory: Path) -> None:
    """Write README.md of a run from its facts, those of results.json, into its directory."""
    base, trained, stages = facts["base"], facts["trained_on"], facts["stages"]
    others = [name for name, blob in trained.items() if BLOB_IDS.get(name) != blob]
    shared_alike = len(others) < len(trained)
    official = facts["data"].get(TEST) == BLOB_IDS[TEST]
    title = f"Korean sentence embeddings from {base}"
    results = []
    for split, name in itertools.product(("test", "dev"), FIGURES):
        similarity, kind = name.split("_")
        result = {"task_type": "semantic-similarity", "task_name": "Semantic Similarity"}
        result |= {"dataset_type": f"sts-{split}", "dataset_name": f"{'KorSTS ' if official else 'sts-'}{split}"}
        result |= {"metric_type": f"{kind}_{similarity}", "metric_name": f"{similarity} {kind}".title()}
        results.append(EvalResult(**result, metric_value=facts[split][name]))
    data = ModelCardData(
        language=["ko"],
        license="cc-by-sa-4.0" if shared_alike else None,  # CC BY-SA of the data requires the same license
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction"],
        datasets=["kakaobrain/kor_nlu"] if shared_alike else None,
        base_model=base if facts["base_on_hub"] else None,
        widget=[{"source_sentence": EXAMPLES[0], "sentences": EXAMPLES[1:]}],
        model_name=title,
        eval_results=results,
    )
    values = facts | _usage(model, directory) | {"title": title, "figures": FIGURES, "plain": escape_markdown}
    values |= {"official": official, "published": COMPARABLE_ROWS[:5] if official else []}
    sources = sorted({name.partition("/")[0] for name in trained})
    values |= {"sources": sources, "others": others, "shared_alike": shared_alike}
    values["stage_table"] = markdown(list(stages[0]), [list(row.values()) for row in stages], texts=stages[0])
    card = ModelCard.from_template(data, template_path=str(TEMPLATE), **values)
    with write_atomically(directory / "README.md") as path:
        path.write_text(f"{card}\n", encoding="utf-8")


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
    return {
        "model": model,
        "examples": EXAMPLES,
        "quoted": lambda text: json.dumps(text, ensure_ascii=False),
        "unit_length": isinstance(model[-1], Normalize),
        "plain_pooling": plain_pooling(model),
        "onnx": (directory / "onnx" / "model.onnx").is_file(),
    }
