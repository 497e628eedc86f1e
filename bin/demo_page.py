"""Write a web page that embeds and compares Korean sentences in the browser: one static folder, no server code.

    python bin/demo_page.py --onnx models/kf-deberta-multitask-int8.onnx
    python bin/demo_page.py --onnx models/kf-deberta-multitask-int8.onnx --corpus sentences.txt --output_dir page
    python -m http.server --directory demo_page 8000         # then open http://localhost:8000 in a browser

The folder holds the page, the graph, its tokenizer and the two JavaScript libraries, which npm fetches once; the page
itself fetches nothing from elsewhere. Browsers run WebAssembly over http only, so open it through a server, not as a
file. int8 is made for this: a quarter of the download, and the fastest.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kf_deberta.cli import InputError, Parser, file_path, flags_first, run
from kf_deberta.data.sentences import CORPUS, QUERIES, read_sentences

TEMPLATE = Path(__file__).resolve().parent.parent / "kf_deberta" / "export" / "demo_page.html"
SENTENCES = [
    *QUERIES,
    "고객이 은행에 빌린 돈을 갚는다.",
    "비트코인을 사는 투자자가 있다.",
    "아이들이 공원에서 뛰어논다.",
]
PACKAGES = ("onnxruntime-web@1.30.0", "@huggingface/tokenizers@0.2.0")
LIBRARY_FILES = {  # in node_modules -> in the folder
    "onnxruntime-web/dist/ort.wasm.bundle.min.mjs": "ort.wasm.bundle.min.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
    "@huggingface/tokenizers/dist/tokenizers.min.mjs": "tokenizers.min.mjs",
    "@huggingface/tokenizers/LICENSE": "tokenizers.LICENSE",
}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add = parser.add_argument_group("page").add_argument
    add("--onnx", type=file_path, default=Path("models/kf-deberta-multitask-int8.onnx"), help="exported graph")
    add("--corpus", type=file_path, help="UTF-8 file, one sentence per line (default: nine financial sentences)")
    add("--output_dir", type=file_path, default=Path("demo_page"), help="folder of the page")
    return parser.parse_args()


flags_first(parse_args)

import jinja2

from kf_deberta.export.folder import check_free, deliver, reserved
from kf_deberta.model.onnx_encoder import OnnxEncoder


def fetch_libraries(directory: Path) -> None:
    """Have npm install PACKAGES and copy what the page needs into `directory`."""
    if (npm := shutil.which("npm")) is None:
        raise InputError("npm: not found; install Node.js 18 or newer, which brings it (Debian: apt install npm)")
    with tempfile.TemporaryDirectory() as modules:
        options = ["--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
        result = subprocess.run(
            [npm, "install", *options, "--prefix", modules, *PACKAGES], capture_output=True, text=True
        )
        if result.returncode:
            reason = " ".join(result.stderr.split())[:300]
            raise InputError(f"npm: cannot install {' and '.join(PACKAGES)} ({reason}); it needs its registry once")
        for source, name in LIBRARY_FILES.items():
            shutil.copyfile(Path(modules) / "node_modules" / source, directory / name)


def main() -> None:
    """Check the graph, gather its files and the libraries, fill the template."""
    # 1. Graph and corpus
    args = parse_args()
    encoder = OnnxEncoder(args.onnx, device="cpu")
    if Path(f"{args.onnx}_data").exists():
        raise InputError(f"{args.onnx}: too large for a browser; give the int8 graph (export_onnx.py --quantize)")
    corpus = read_sentences(args.corpus) if args.corpus else CORPUS
    tokenizer_files = ("tokenizer.json", "tokenizer_config.json")
    for name in tokenizer_files:
        if not (encoder.folder / name).is_file():
            raise InputError(f"{encoder.folder / name}: no such file; export the graph again")

    # 2. One folder
    with reserved(args.output_dir) as work:
        check_free(args.output_dir, ["index.html", "model.onnx", *tokenizer_files])
        shutil.copyfile(args.onnx, work / "model.onnx")
        for name in tokenizer_files:
            shutil.copyfile(encoder.folder / name, work / name)
        fetch_libraries(work)
        settings = {
            "sentences": SENTENCES,
            "corpus": corpus,
            "prompt": encoder.prompt,
            "length": (encoder.tokenizer.truncation or {"max_length": 512})["max_length"],
            "about": f"{args.onnx.name}, {args.onnx.stat().st_size / 1e6:.0f} MB",
        }
        template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"))
        page = template.render(name=args.onnx.stem, settings=settings)
        (work / "index.html").write_text(page, encoding="utf-8")
        deliver(work, args.output_dir)
    print(f"{args.output_dir}/index.html; to open it: python -m http.server --directory {args.output_dir} 8000")
    print("and http://localhost:8000 in a browser")


if __name__ == "__main__":
    run(main)
