"""Load model folders in older sentence-transformers, each in an environment of its own, and compare embeddings.

    python dev/clients.py                                           # six small models of the sample, built on the spot
    python dev/clients.py --model_name_or_path output/my-model

The environments are kept in --venvs (1.4 GB each) and made once from PyPI. Exit status: 1 when an embedding differs
from the installed version's by more than --tolerance, or does not come.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in ("", "sample")]

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from build_base import build_base
from kf_deberta.cli import Parser, file_path, positive, run
from kf_deberta.model.save import save_model

CLIENTS = {  # sentence-transformers -> what was current beside it; torch is the installed one
    "2.7.0": ["transformers==4.40.2", "numpy<2"],
    "3.4.1": ["transformers==4.48.3"],
    "5.1.2": ["transformers==4.57.1"],
    "5.4.1": ["transformers==5.4.0"],
}
MODULES = {
    "mean": lambda: [Pooling(128)],
    "cls": lambda: [Pooling(128, "cls")],
    "cls, max and mean": lambda: [Pooling(128, ("cls", "max", "mean"))],
    "mean sqrt": lambda: [Pooling(128, "mean_sqrt_len_tokens")],
    "mean, normalize": lambda: [Pooling(128), Normalize()],
    "mean, dense, normalize": lambda: [Pooling(128), Dense(128, 64), Normalize()],
}
SENTENCES = [
    "은행에서 예금을 인출한다.",
    "a",
    "",
    "주식 시장에서 한 투자자가 주식을 매수한다. " * 40,
    "😀 \u1112\u1161\u11ab글 Straße",
]
PROBE = """
import json, sys
import numpy as np
from sentence_transformers import SentenceTransformer
sentences, output, *folders = json.loads(sys.stdin.read())
for number, folder in enumerate(folders):
    model = SentenceTransformer(folder, device="cpu")
    np.save(f"{output}/{number}.npy", model.float().encode(sentences))
"""


def main() -> int:
    """Make the environments and models that are missing, embed in each, print one line per client and model."""
    # 1. Flags
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "--model_name_or_path",
        type=file_path,
        nargs="+",
        metavar="DIR",
        help="folders (default: models of the sample)",
    )
    venvs = Path(tempfile.gettempdir()) / "kf-clients"
    add("--venvs", type=file_path, default=venvs, metavar="DIR", help="where the environments are")
    add("--tolerance", type=positive, default=1e-5, help="largest difference of a value")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as directory:
        # 2. The models, and their embeddings in this environment
        folders = {str(folder): str(folder.resolve()) for folder in args.model_name_or_path or []}
        if not folders:
            base = build_base(Path(directory) / "base")
            for name, modules in MODULES.items():
                folders[name] = f"{directory}/{name}"
                model = SentenceTransformer(modules=[Transformer(str(base)), *modules()], device="cpu")
                model.max_seq_length = 64
                save_model(model, Path(folders[name]))
        expected = [SentenceTransformer(path, device="cpu").float().encode(SENTENCES) for path in folders.values()]

        # 3. The same in each client
        failures = 0
        for version, others in CLIENTS.items():
            python = args.venvs / version / "bin" / "python"
            if subprocess.run(
                [python, "-c", "import sentence_transformers"], capture_output=True, check=False
            ).returncode:
                subprocess.run([sys.executable, "-m", "venv", "--clear", args.venvs / version], check=True)
                torch_version = torch.__version__.split("+")[0]
                packages = [f"torch=={torch_version}", f"sentence-transformers=={version}", *others]
                subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
            output = Path(directory) / version
            output.mkdir()
            message = json.dumps([SENTENCES, str(output), *folders.values()])
            probe = subprocess.run([python, "-c", PROBE], input=message, text=True, capture_output=True, check=False)
            for number, name in enumerate(folders):
                file = output / f"{number}.npy"
                difference = np.abs(np.load(file) - expected[number]).max() if file.exists() else np.nan
                print(f"sentence-transformers {version:6}  {name:24} differs by at most {difference:.1e}", flush=True)
                failures += not difference <= args.tolerance
            if probe.returncode:
                print(probe.stderr.strip().splitlines()[-1])
    return 1 if failures else 0


if __name__ == "__main__":
    run(main)
