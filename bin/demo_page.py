"""Write a web page that embeds and compares Korean sentences in a browser.

    python bin/demo_page.py --onnx models/my-model-int8.onnx
    python -m http.server --directory demo_page 8000  # http://localhost:8000

npm fetches two JavaScript libraries into the page, which itself fetches none.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jinja2

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from kf_deberta.data.tsv import read_sentences
from kf_deberta.errors import InputError, check_writable, run, say, write_atomically
from kf_deberta.flags import Parser, file_path
from kf_deberta.model.onnx_encoder import OnnxEncoder, model_of

SENTENCES = ["고객이 은행에 빌린 돈을 갚는다.", "비트코인을 사는 투자자가 있다.", "아이들이 공원에서 뛰어논다."]
PACKAGES = ("onnxruntime-web@1.30.0", "@huggingface/tokenizers@0.2.0")
LIBRARIES = {  # file of the page: where npm puts it
    "ort.wasm.bundle.min.mjs": "onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
    "ort-wasm-simd-threaded.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "tokenizers.min.mjs": "@huggingface/tokenizers/dist/tokenizers.min.mjs",
    "tokenizers.LICENSE": "@huggingface/tokenizers/LICENSE",
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def main() -> None:
    """Check the graph, have npm fetch the libraries, write the folder."""
    # 1. Flags, and what could be in the way
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--onnx", type=file_path, default=Path("models/kf-deberta-multitask-int8.onnx"), help="exported int8 graph")
    add("--corpus", type=file_path, help="UTF-8 file, one sentence per line (default: nine sentences on finance)")
    add("--output_dir", type=file_path, default=Path("demo_page"), help="folder of the page, new or a former page")
    args = parser.parse_args()
    check_writable(folder := args.output_dir.resolve())
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if found and ("index.html" not in found or found - {"index.html", "model.onnx", *TOKENIZER, *LIBRARIES}):
        raise InputError(f"{args.output_dir}: has files that are not of a page; choose another folder")

    # 2. Graph and sentences
    length = (OnnxEncoder(args.onnx, device="cpu").tokenizer.truncation or {"max_length": 512})["max_length"]
    home = args.onnx.parent if (args.onnx.parent / TOKENIZER[0]).is_file() else args.onnx.parent.parent
    name = model_of(args.onnx) or args.onnx.stem
    sentences = [*read_sentences(REPO / "sample" / "search_queries.txt"), *SENTENCES]
    corpus = read_sentences(args.corpus or REPO / "sample" / "search_corpus.txt")
    template = jinja2.Template((REPO / "kf_deberta" / "export" / "page.html").read_text(encoding="utf-8"))
    page = template.render(name=name, length=length, sentences=sentences, corpus=corpus, size=args.onnx.stat().st_size)

    # 3. Libraries, and the folder, which replaces a former page as a whole
    if not shutil.which("npm"):
        raise InputError("npm: not found; install Node.js 18 or newer, which has it (Debian: apt install npm)")
    say(f"fetching {' and '.join(PACKAGES)}")
    with tempfile.TemporaryDirectory() as modules, write_atomically(folder) as work:
        options = ["--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
        command = ["npm", "install", *options, "--prefix", modules, *PACKAGES]
        if (result := subprocess.run(command, capture_output=True, text=True)).returncode:
            raise InputError(f"npm: failed ({' '.join(result.stderr.split())[:300]}); it needs npm's registry once")
        files = {file: Path(modules, "node_modules", source) for file, source in LIBRARIES.items()}
        work.mkdir()
        for file, source in (files | {file: home / file for file in TOKENIZER} | {"model.onnx": args.onnx}).items():
            shutil.copyfile(source, work / file)
        (work / "index.html").write_text(page, encoding="utf-8")
    print(f"python -m http.server --directory {args.output_dir} 8000 serves the page at http://localhost:8000")


if __name__ == "__main__":
    run(main)
