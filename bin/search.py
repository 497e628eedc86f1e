"""Semantic search: the corpus sentences nearest to each query by cosine similarity.

    python bin/search.py                                                 # three example queries, nine sentences
    python bin/search.py "은행에서 대출을 상환하는 고객이 있다."
    python bin/search.py --corpus sentences.txt --top_k 3 < queries.txt  # one sentence per line
    python bin/search.py --onnx models/kf-deberta-multitask.onnx "한 투자자가 비트코인을 매수한다."

A corpus is embedded once: its vectors are kept beside it, in <corpus>.<key>.npy, for as long as neither the model, its
settings nor the corpus changes.
"""

import argparse
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kf_deberta.cli import (
    InputError,
    Parser,
    add_model_flags,
    check_model_name,
    count,
    file_path,
    is_out_of_memory,
    model_name,
    model_options,
    printable,
    run,
    say,
)
from kf_deberta.data.sentences import CORPUS, QUERIES, lines_of, read_sentences
from kf_deberta.data.text import compose_texts


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__, positional=" [query ...]")
    add = parser.add_argument_group("search").add_argument
    add("query", nargs="*", help="queries (default: the lines of standard input; at a terminal, three examples)")
    add("--corpus", type=file_path, help="UTF-8 file, one sentence per line (default: nine financial sentences)")
    add("--top_k", type=count, default=5, help="sentences shown per query")
    model = parser.add_argument_group("model")
    add = model.add_argument
    add("--model_name_or_path", type=model_name, default="upskyy/kf-deberta-multitask", help="hub name or directory")
    add("--onnx", type=file_path, help="exported graph to embed with instead, by onnxruntime alone")
    add("--device", help="torch device (default: the accelerator where there is one)")
    add_model_flags(model)
    args = parser.parse_args()
    of_torch = ("model_name_or_path", "revision", "pooling", "trust_remote_code", "no_fast_attention")
    given = [name for name in of_torch if getattr(args, name) != parser.get_default(name)]
    if args.onnx and given:
        raise InputError(f"{args.onnx}: the graph is all that is loaded; leave out --{', --'.join(given)}")
    return args


def main() -> None:
    """Embed corpus and queries, and print the nearest sentences of each query."""
    # 1. Corpus and queries
    args = parse_args()
    if not all(query.strip() for query in args.query):
        raise InputError("a query is blank; write what to search for")
    corpus = read_sentences(args.corpus) if args.corpus else CORPUS
    # bytes of the command line that are no UTF-8 arrive as surrogates, which no tokenizer takes
    queries = [query.encode("utf-8", "surrogatepass").decode("utf-8", "replace") for query in args.query]
    if not queries:
        queries = (
            QUERIES if sys.stdin is None or sys.stdin.isatty() else lines_of(sys.stdin.buffer.read(), "standard input")
        )
    queries = compose_texts(queries, "queries")

    # 2. Vectors of length 1, so that their products are cosines
    if not args.onnx:
        check_model_name(args.model_name_or_path)
    say("loading libraries")  # 5 seconds and more
    from kf_deberta.model.index import embed_corpus, fingerprint, folder_files, nearest, unit_vectors

    if args.onnx:
        from kf_deberta.model.onnx_encoder import OnnxEncoder, describe_prompt

        say(f"loading {args.onnx}")
        encoder = OnnxEncoder(args.onnx, device=args.device, prompt=args.prompt)
        about = f"{args.onnx}{describe_prompt(encoder.prompt)}"
        encode, files, settings = encoder.encode, encoder.files, about
    else:
        from kf_deberta.evaluation.published import published_pooling
        from kf_deberta.evaluation.scoring import encode_sorted
        from kf_deberta.model.load import describe, load_model

        options = model_options(args) | {"pooling": args.pooling or published_pooling(args.model_name_or_path)}
        model = load_model(args.model_name_or_path, device=args.device, **options)
        about = f"{args.model_name_or_path}: {describe(model)}"
        size = 64 if model.device.type == "cpu" else 256
        encode = functools.partial(encode_sorted, model, batch_size=size, show_progress=False)
        files = [] if model.revision else folder_files(Path(args.model_name_or_path))
        settings = f"{about}, {model.revision}, {model.max_seq_length} tokens"
    print(about, file=sys.stderr)
    embed = functools.partial(unit_vectors, encode, name=str(args.onnx or args.model_name_or_path))
    try:
        if args.corpus:
            vectors = embed_corpus(args.corpus, corpus, embed, fingerprint(files, settings))
        else:
            vectors = embed(corpus)
        found = nearest(vectors, embed(queries), args.top_k)
    except (MemoryError, RuntimeError) as error:  # torch's allocator raises a RuntimeError
        if not is_out_of_memory(error):
            raise
        raise InputError("out of memory; take a smaller corpus or model, or another --device") from error

    # 3. The nearest sentences; equal scores in corpus order
    for query, neighbors in zip(queries, found, strict=True):
        print(f"\nQuery: {printable(query)}")
        for index, score in neighbors:
            print(f"{printable(corpus[index])} (Score: {score:.4f})")


if __name__ == "__main__":
    run(main)
