"""The model card of a finished run, from the template card.md: good enough to be published as it is."""

import argparse
import json
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import SchedulerType

from kf_deberta.cli import escape_markdown, write_atomically
from kf_deberta.data.official import BLOB_IDS
from kf_deberta.model.load import default_prompt
from kf_deberta.training.trainer import MultiTaskTrainer

TEMPLATE = Path(__file__).with_name("card.md")
NO_ONNX = "<!-- onnx -->"  # what the template leaves where `add_onnx_usage` writes
EXAMPLES = [
    "은행에서 예금을 만기로 인출하는 고객이 있다.",
    "만기가 된 정기예금을 찾으러 손님이 은행에 왔다.",
    "주식 시장에서 한 투자자가 주식을 매수한다.",
]
DATA = {"nli": ("triplets", "KorNLI"), "sts": ("pairs", "KorSTS")}  # what the rows of an objective are, and whence


def write_model_card(
    trainer: MultiTaskTrainer, args: argparse.Namespace, facts: dict, dev: dict[str, float], directory: Path
) -> None:
    """Write README.md of a finished run into `directory`.

    Args:
        trainer: has trained; names the objectives, their data, losses and the recipe.
        args: the script's flags.
        facts: what training_arguments.json holds, the test figures included.
        dev: the kept model's figures on dev, -1..1, by names such as `sts-dev_spearman_cosine`.
        directory: the run's folder, with the model in it.
    """
    base = args.model_name_or_path
    on_hub = not Path(base).exists()
    base_name = base if on_hub else Path(base).resolve().name
    hub_name = getattr(trainer, "hub_model_id", None) or trainer.args.hub_model_id
    local = directory.relative_to(Path.cwd()) if directory.is_relative_to(Path.cwd()) else directory.name
    official = facts["content"].get("KorSTS/sts-test.tsv") == BLOB_IDS["KorSTS/sts-test.tsv"]
    title = f"Korean sentence embeddings from {base_name}"
    figures = [name for name in facts["test"] if not name[0].isdigit()]  # those of a prefix begin with its length
    data = ModelCardData(
        language=["ko"],
        license="cc-by-sa-4.0" if official else None,  # of the data, which is to be passed on alike
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction"],
        datasets=["kakaobrain/kor_nlu"] if official else None,
        base_model=base if on_hub else None,
        widget=[{"source_sentence": EXAMPLES[0], "sentences": EXAMPLES[1:]}],
        model_name=title,
        eval_results=[
            *(_result("test", *name.split("_"), facts["test"][name] / 100, official) for name in figures),
            *(_result("dev", *name.split("_")[:0:-1], value, official) for name, value in dev.items()),
        ],
    )
    prefixes = [name for name in facts["test"] if name[0].isdigit() and name.endswith("_cosine_spearman")]
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        **_usage(trainer.model, directory),
        plain=escape_markdown,
        title=title,
        base=f"[{base}](https://huggingface.co/{base})" if on_hub else escape_markdown(base_name),
        kf_deberta="kf-deberta" in base.lower(),
        name=hub_name or str(local),
        trust=", trust_remote_code=True" if args.trust_remote_code else "",
        sources=[DATA[name][1] for name in trainer.batch_samplers if name in DATA],
        others=[n for n, blob in facts["content"].items() if n[:3] == "Kor" and BLOB_IDS.get(n) != blob],
        dims=[dim for dim in args.matryoshka_dims or [] if dim < trainer.model.get_embedding_dimension()],
        official=official,
        pairs=facts["test_pairs"],
        figures=[(name.replace("_", " ").title(), facts["baseline"][name], facts["test"][name]) for name in figures],
        prefixes=[(name.split("_")[0], facts["baseline"][name], facts["test"][name]) for name in prefixes],
        recipe=[(what, escape_markdown(value)) for what, value in _recipe(trainer, args, facts).items()],
    )
    with write_atomically(directory / "README.md") as path:
        path.write_text(f"{card}\n", encoding="utf-8")


def add_onnx_usage(model: SentenceTransformer, directory: Path) -> bool:
    """Say in the card of a run in `directory` how its onnx/model.onnx is used; False where there is no such card."""
    path = directory / "README.md"
    text = path.read_text(encoding="utf-8", errors="surrogateescape") if path.is_file() else ""
    if NO_ONNX not in text:
        return False
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"))
    context = template.new_context(_usage(model, directory))
    section = "".join(template.blocks["onnx"](context))
    with write_atomically(path) as temporary:
        temporary.write_text(text.replace(NO_ONNX, section, 1), encoding="utf-8", errors="surrogateescape")
    return True


def _usage(model: SentenceTransformer, directory: Path) -> dict:
    """Return what the code blocks of the template need."""
    others, prompt = list(model)[1:], default_prompt(model)
    modes = [module.pooling_mode for module in others if isinstance(module, Pooling)]
    whole = all(module.include_prompt for module in others if isinstance(module, Pooling)) or not prompt
    known = all(isinstance(module, Pooling | Normalize) for module in others) and modes in (["mean"], ["cls"])
    config = getattr(model[0], "config", None)  # static embeddings have none
    decoder = getattr(config, "is_encoder_decoder", False)  # AutoModel would want its inputs
    return {
        "examples": EXAMPLES,
        "quoted": _quoted,
        "texts": f"[{_quoted(prompt)} + sentence for sentence in sentences]" if prompt else "sentences",
        "dimension": model.get_embedding_dimension(),
        "hidden": model[0].get_embedding_dimension(),
        "max_seq_length": model.max_seq_length,
        "unit_length": isinstance(model[-1], Normalize),
        "plain_pooling": modes[0] if known and whole and not decoder else None,
        "pad_id": getattr(model.tokenizer, "pad_token_id", None),
        "pad_token": getattr(model.tokenizer, "pad_token", None),
        "onnx": (directory / "onnx" / "model.onnx").is_file(),
    }


def _quoted(text: str) -> str:
    """Return `text` as a Python string literal."""
    return json.dumps(text, ensure_ascii=False)


def _recipe(trainer: MultiTaskTrainer, args: argparse.Namespace, facts: dict) -> dict[str, str]:
    """Return the recipe as rows; what is off or takes no part has none."""
    training = trainer.args
    objectives = list(trainer.batch_samplers)
    rounds = trainer.state.max_steps // len(objectives)
    rows = {"script": facts["script"]}
    if commit := facts.get("base_revision"):
        rows["base model"] = f"{args.model_name_or_path}, commit {commit[:12]}"
    for name in objectives:
        loss = trainer.loss[name]
        kinds = [type(loss).__name__]
        while hasattr(loss, "loss"):  # inside a MatryoshkaLoss
            loss = loss.loss
            kinds.append(type(loss).__name__)
        scale = f", scale {loss.scale:g}" if hasattr(loss, "scale") else ""
        size, batch = len(trainer.train_dataset[name]), trainer.batch_samplers[name].batch_size
        kind, source = DATA.get(name, ("rows", name))
        objective = f"{size:,} {kind} of {source}, batches of {batch}, {' over '.join(kinds)}{scale}"
        rows[f"{name.upper()} objective"] = objective
    alternate = "; the objectives take turns, a round is one step of each" if len(objectives) > 1 else ""
    epochs = f"{trainer.state.epoch:.3g} epoch{'s' * (trainer.state.epoch != 1)}"
    rows["rounds"] = f"{rounds:,} in {epochs}{alternate}"
    apart = ", one with moments of its own per objective" if len(objectives) > 1 else ""
    clipped = f", gradients clipped to norm {training.max_grad_norm:g}" if training.max_grad_norm else ""
    rows["optimizer"] = f"AdamW{apart}, weight decay {training.weight_decay:g}{clipped}"
    warmup = training.warmup_steps
    share = f"the first {warmup:.0%}" if warmup < 1 else f"{warmup:,.0f}"
    schedule = SchedulerType(training.lr_scheduler_type).value
    rows["learning rate"] = f"{training.learning_rate:g}, {schedule} schedule, warm-up over {share} of the rounds"
    rows["maximum length"] = f"{trainer.model.max_seq_length} tokens"
    rows["precision"] = "bfloat16 autocast" if training.bf16 else str(args.dtype)
    rows["seed"] = str(training.seed)
    if training.world_size > 1:
        rows["processes"] = str(training.world_size)
    rows["kept"] = f"round {facts['best_round']:,}, {facts['best_dev_cosine_spearman']:.2f} on KorSTS dev, the best"
    rows["libraries"] = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    return rows


def _result(split: str, similarity: str, kind: str, value: float, official: bool) -> EvalResult:
    return EvalResult(
        task_type="semantic-similarity",
        task_name="Semantic Similarity",
        dataset_type=f"sts-{split}",
        dataset_name=f"KorSTS {split}" if official else f"sts {split}",
        metric_type=f"{kind}_{similarity}",
        metric_name=f"{kind.title()} {similarity.title()}",
        metric_value=value,
    )
