"""The official KorNLI and KorSTS files: how many rows they have, and which content git knows them by."""

import hashlib
from pathlib import Path

KOR_STS_ROWS = {"sts-train.tsv": 5749, "sts-dev.tsv": 1500, "sts-test.tsv": 1379}
# git blob ids in github.com/kakaobrain/kor-nlu-datasets at 0df0fe7d496eb61b092e022e238c2230b29f1cbc
BLOB_IDS = {
    "KorSTS/sts-train.tsv": "91fc16190dd0102a3cad2f0abf83317703438869",
    "KorSTS/sts-dev.tsv": "3686d9394fa63bcfd6b1bc7c70a60b1dfe08d388",
    "KorSTS/sts-test.tsv": "d2a7c958d520ed84402c0042142a60d9a18ee3e4",
    "KorNLI/snli_1.0_train.ko.tsv": "c91761e52fca2a7420104589811346986ce94073",
    "KorNLI/multinli.train.ko.tsv": "94d26a9d0dd045928148ef8691a256bd0e7d45c3",
    "KorNLI/xnli.dev.ko.tsv": "21305150d466aa35d42b14e1890b7dcd58084634",
    "KorNLI/xnli.test.ko.tsv": "89a0b11bffa775fafd88178b3980a1fe2d8aee52",
}


def git_blob_id(path: Path) -> str:
    """Return the id git gives the file's content: SHA-1 over "blob <size>", a NUL byte and the content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify(dataset_path: str | Path) -> dict[str, str]:
    """Compare a copy of the data set with the official one: {file: "ok", "missing" or "differs (...)"}."""
    results = {}
    for name, official in BLOB_IDS.items():
        path = Path(dataset_path) / name
        found = git_blob_id(path) if path.is_file() else None
        results[name] = {None: "missing", official: "ok"}.get(
            found, f"differs (git blob {found}, official {official})"
        )
    return results
