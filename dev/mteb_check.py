"""Score a model with the real mteb package on a local KorSTS file, and compare its figures with ours.

    pip install mteb==2.26.24
    python dev/mteb_check.py --model_name_or_path output/my-model --name owner/my-model

MTEB's KorSTS task fetches a de-duplicated copy of 1,376 rows; here it is fed the official file, so that both scores
are of the same pairs. Its result files land in <output_dir>/results/<owner>__<model>/<revision>/; docs/mteb.md has the
rest.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mteb
from datasets import Dataset, DatasetDict
from mteb.models import ModelMeta, SentenceTransformerEncoderWrapper
from sentence_transformers import SentenceTransformer

from kf_deberta.cli import InputError, Parser, file_path, run
from kf_deberta.data.pairs import load_file
from kf_deberta.evaluation.scoring import FIGURES, encode_pairs, encode_sorted, pair_similarities, score
from kf_deberta.model.load import load_model

TOLERANCE = 5e-5  # of a correlation: half of what the second decimal of a score x100 shows


def model_meta(model: SentenceTransformer, name: str, revision: str) -> ModelMeta:
    """Return what MTEB's registry wants to know of a model that these recipes trained."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelMeta(
        loader=SentenceTransformerEncoderWrapper,
        name=name,
        revision=revision,
        release_date=None,
        languages=["kor-Hang"],
        n_parameters=parameters,
        n_embedding_parameters=model[0].model.get_input_embeddings().weight.numel(),
        memory_usage_mb=parameters * 4 / 2**20,
        max_tokens=model.max_seq_length,
        embed_dim=model.get_embedding_dimension(),
        license=None,
        open_weights=True,
        public_training_code="https://github.com/upskyy/kf-deberta-multitask",
        public_training_data="https://github.com/kakaobrain/kor-nlu-datasets",
        framework=["Sentence Transformers", "PyTorch"],
        similarity_fn_name="cosine",
        use_instructions=False,
        training_datasets={"KorSTS", "KorNLI"},
    )


def main() -> int:
    """Score both ways and print the figures; 2 where one differs."""
    # 1. Flags, pairs and model
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="folder or hub name of the model")
    add(
        "--sts_file",
        type=file_path,
        default="kor-nlu-datasets/KorSTS/sts-test.tsv",
        help="KorSTS file to feed MTEB's task",
    )
    add("--name", default="local/model", help="owner/model as MTEB is to call it")
    add("--revision", default="local", help="commit of the model on the hub")
    add("--output_dir", type=file_path, default="mteb-results", help="folder for MTEB's result files")
    args = parser.parse_args()
    if args.name.count("/") != 1:
        raise InputError(f"--name {args.name}: give owner/model")
    pairs = load_file(args.sts_file)
    model = load_model(args.model_name_or_path)

    # 2. MTEB's own evaluation on these pairs
    task = mteb.get_task("KorSTS")
    columns = {"sentence1": pairs.sentences1, "sentence2": pairs.sentences2, "score": (5 * pairs.gold).tolist()}
    task.dataset, task.data_loaded = DatasetDict({"test": Dataset.from_dict(columns)}), True
    encoder = SentenceTransformerEncoderWrapper(model)
    encoder.mteb_model_meta = model_meta(model, args.name, args.revision)
    cache = mteb.ResultCache(args.output_dir)
    result = mteb.evaluate(encoder, task, cache=cache, overwrite_strategy="always", show_progress_bar=False)
    theirs = result.task_results[0].scores["test"][0]

    # 3. Ours, and the comparison; MTEB has no dot product
    embedded = encode_pairs(lambda sentences: encode_sorted(model, sentences, 32), pairs.sentences1, pairs.sentences2)
    ours = score(pair_similarities(embedded), pairs.gold)
    print(f"{args.sts_file}: {len(pairs.gold):,} pairs, x100\n{'':<20} {'mteb':>9} {'ours':>9}")
    common = [name for name in FIGURES if name in theirs]
    for name in common:
        print(f"{name:<20} {100 * theirs[name]:9.4f} {100 * ours[name]:9.4f}")
    differ = [name for name in common if abs(theirs[name] - ours[name]) > TOLERANCE]
    print(f"results: {args.output_dir}/results")
    if differ:
        print(f"different: {', '.join(differ)}")
    return 2 if differ or "cosine_spearman" not in common else 0


if __name__ == "__main__":
    run(main)
