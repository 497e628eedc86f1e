"""Semantic search: the sentences of a corpus nearest to each query by cosine.

    python bin/search.py                    # three queries, nine sentences
    python bin/search.py --corpus sentences.txt --top_k 3 < queries.txt
    python bin/search.py --onnx models/kf-deberta-multitask.onnx "비트코인"

Files are UTF-8 text with one sentence per line.
"""

import os
import sys
from pathlib import Path

import numpy as np

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from kf_deberta.data.tsv import compose_hangul, read_sentences
from kf_deberta.errors import run, say
from kf_deberta.flags import Parser, add_model_flags, count, file_path


def main() -> None:
    """Embed corpus and queries, and print the nearest sentences of each query."""
    # 1. Flags
    parser = Parser(__doc__)
    add = parser.add_argument
    add("query", nargs="*", help="queries (default: lines of standard input; at a terminal, three examples)")
    add("--corpus", type=file_path, help="the sentences to search (default: nine sentences on finance)")
    add("--top_k", type=count, default=5, help="sentences shown for each query")
    add("--onnx", type=file_path, help="ONNX file of an export, used instead of a model (needs no torch)")
    add("--device", help="torch device (default: GPU if available)")
    add_model_flags(parser, default="upskyy/kf-deberta-multitask")
    args = parser.parse_args()

    # 2. Sentences
    corpus = read_sentences(args.corpus or REPO / "sample" / "search_corpus.txt")
    # whatever the locale, the bytes of the command line are UTF-8
    queries = [compose_hangul(os.fsencode(query).decode("utf-8", "replace"), "query") for query in args.query]
    if not queries:
        queries = read_sentences(REPO / "sample" / "search_queries.txt" if sys.stdin.isatty() else Path("/dev/stdin"))

    # 3. Embeddings of length 1, so that their products are cosines
    if args.onnx:
        from kf_deberta.model.onnx_encoder import OnnxEncoder

        model = OnnxEncoder(args.onnx, device=args.device)
    else:
        say("loading libraries")  # 5 seconds and more
        from kf_deberta.evaluation.report import published_pooling
        from kf_deberta.model.load import load_model

        pooling = args.pooling or published_pooling(args.model_name_or_path)
        model = load_model(args.model_name_or_path, revision=args.revision, device=args.device, pooling=pooling)
    embeddings = model.encode([*queries, *corpus], show_progress_bar=sys.stderr.isatty())
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)

    # 4. The nearest sentences; equal scores in corpus order
    for query, scores in zip(queries, embeddings[: len(queries)] @ embeddings[len(queries) :].T, strict=True):
        print(f"\nQuery: {query}")
        for row in np.argsort(-scores, kind="stable")[: args.top_k]:
            print(f"{corpus[row]} (Score: {scores[row]:.4f})")


if __name__ == "__main__":
    run(main)
