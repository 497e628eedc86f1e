import hashlib
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict

import pytest
from scipy.stats import chi2_contingency, chisquare

from data_util import find_kor_nli_train_files, load_kor_nli
from kf_deberta.cli import InputError
from kf_deberta.data import tsv
from kf_deberta.data.official import verify

HEADER = "sentence1\tsentence2\tgold_label\n"
LABELS = ("entailment", "contradiction", "neutral")


def write(path, rows, header=HEADER):
    path.write_bytes((header + "".join("\t".join(row) + "\n" for row in rows)).encode())
    return path


def read_plainly(path):
    return [line.split("\t") for line in path.read_bytes().decode().split("\n")[1:-1]]


def plain_partners(rows):
    """{sentence: {label: set of partners}}, both directions, from rows of (sentence1, sentence2, label)."""
    partners = defaultdict(lambda: defaultdict(set))
    for a, b, label in rows:
        partners[a.strip()][label.strip()].add(b.strip())
        partners[b.strip()][label.strip()].add(a.strip())
    return partners


def check_triplets(triplets, partners):
    """The triplets are two for each sentence with both kinds of partners, built from its own partners."""
    anchors = {sentence for sentence, of in partners.items() if of["entailment"] and of["contradiction"]}
    assert len(triplets) == 2 * len(anchors)
    forward, backward = triplets[::2], triplets[1::2]
    assert {a for a, _, _ in forward} == {p for _, p, _ in backward} == anchors
    for sentence, positive, negative in [*forward, *((p, a, n) for a, p, n in backward)]:
        assert positive in partners[sentence]["entailment"]
        assert negative in partners[sentence]["contradiction"]


def as_tuples(data):
    assert data.column_names == ["anchor", "positive", "negative"]
    return list(zip(data["anchor"], data["positive"], data["negative"], strict=True))


def small_corpus(path, seed, rows=400):
    """Few sentences in many rows: duplicates, both directions, conflicting labels, texts with spaces and quotes."""
    rng = random.Random(seed)
    sentences = [f'문장 "{i}' for i in range(60)]
    pad = ("", " ", "\u3000", "\xa0\r ")
    return write(
        path, [(rng.choice(sentences) + rng.choice(pad), rng.choice(pad) + rng.choice(sentences), rng.choice(LABELS))
               for _ in range(rows)],
    )  # fmt: skip


def test_triplets_of_a_small_corpus_are_those_of_a_plain_reading(tmp_path):
    for seed in range(5):
        path = small_corpus(tmp_path / "a.tsv", seed, rows=(30, 100, 400)[seed % 3])
        check_triplets(as_tuples(load_kor_nli([path], seed)), plain_partners(read_plainly(path)))


def test_real_file_gives_the_known_number_of_triplets(kor_nlu):
    paths = find_kor_nli_train_files(kor_nlu)
    assert [path.name for path in paths] == ["xnli_standin.train.ko.tsv"]
    triplets = as_tuples(load_kor_nli(paths, 42))
    assert len(triplets) == 4998
    check_triplets(triplets, plain_partners(read_plainly(paths[0])))


def test_files_are_processed_one_by_one(tmp_path):
    a = write(tmp_path / "a.tsv", [("가", "나", "entailment"), ("다", "라", "contradiction")])
    b = write(
        tmp_path / "b.tsv", [("가", "마", "contradiction"), ("다", "바", "entailment"), ("다", "사", "contradiction")]
    )
    assert as_tuples(load_kor_nli([a, b], 0)) == [("다", "바", "사"), ("바", "다", "사")]


def test_sentences_come_in_the_order_of_sentence1_and_then_of_sentence2(tmp_path):
    rows = [("하", "가", "entailment"), ("가", "마", "contradiction"), ("마", "나", "entailment")]
    path = write(tmp_path / "a.tsv", [*rows, ("바", "나", "contradiction"), ("하", "파", "contradiction")])
    assert [positive for _, positive, _ in as_tuples(load_kor_nli([path], 0))[1::2]] == ["하", "가", "마", "나"]


def test_partners_are_uniform_over_the_distinct_ones_and_drawn_independently(tmp_path):
    size = 4000
    rows = []
    for i in range(size):  # 3 distinct entailed partners, one of them in 9 rows; 4 contradicting ones
        rows += [(f"전제 {i}", f"{i} 함의 {j}", "entailment") for j in (0, 0, 0, 0, 0, 0, 0, 0, 1, 2)]
        rows += [(f"{i} 함의 0 ", f"전제 {i}", "entailment")]
        rows += [(f"{i} 모순 {j}", f"전제 {i}", "contradiction") for j in range(4)]
        rows += [(f"전제 {i}", f"{i} 중립", "neutral")]
    triplets = as_tuples(load_kor_nli([write(tmp_path / "a.tsv", rows)], 7))
    assert len(triplets) == 2 * size
    forward = [(int(p[-1]), int(n[-1])) for _, p, n in triplets[::2]]
    backward = [(int(a[-1]), int(n[-1])) for a, _, n in triplets[1::2]]
    for draws in (forward, backward):
        cells = Counter(draws)
        assert chisquare([cells[i, j] for i in range(3) for j in range(4)]).pvalue > 1e-3
    for i in range(2):  # the second triplet does not repeat the draws of the first
        pairs = Counter((f[i], b[i]) for f, b in zip(forward, backward, strict=True))
        options = range((3, 4)[i])
        assert chi2_contingency([[pairs[x, y] for y in options] for x in options]).pvalue > 1e-3


def test_only_seed_and_content_decide(tmp_path, monkeypatch):
    a, b = small_corpus(tmp_path / "a.tsv", 1), small_corpus(tmp_path / "b.tsv", 2)
    triplets = as_tuples(load_kor_nli([a, b], 3))
    assert as_tuples(load_kor_nli([str(b), str(a)], 3)) == triplets
    assert as_tuples(load_kor_nli([a, b], 4)) != triplets
    monkeypatch.setattr(tsv, "CHUNK_ROWS", 100)
    assert as_tuples(load_kor_nli(iter([b, a]), 3)) == triplets

    elsewhere = tmp_path / "0"  # a folder that sorts before the other files' names
    elsewhere.mkdir()
    for path in (a, b):  # the same rows in another layout: BOM, CRLF, other columns, no final newline
        rows = [HEADER.strip().split("\t"), *read_plainly(path)]
        text = "\r\n".join(f"{label}\t{s2}\t\t{s1}" for s1, s2, label in rows).replace("\t\t", "\tx\t")
        (elsewhere / path.name).write_bytes(b"\xef\xbb\xbf" + text.replace("\tx\t", "\tid\t", 1).encode())
    assert as_tuples(load_kor_nli([elsewhere / "b.tsv", a], 3)) == triplets


def test_hash_seed_changes_nothing(tmp_path, repo):
    path = small_corpus(tmp_path / "a.tsv", 1)
    code = "import sys; from data_util import load_kor_nli; d = load_kor_nli(sys.argv[1:], 5)\n"
    code += "assert 'torch' not in sys.modules; print(d._fingerprint, list(d))"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code, path],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(repo)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    ]
    assert outputs[0] == outputs[1] and len(outputs[0]) > 1000


def test_fingerprint_follows_the_content(tmp_path):
    path = small_corpus(tmp_path / "a.tsv", 1)
    fingerprints = [load_kor_nli([path], seed)._fingerprint for seed in (0, 0, 1)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_an_empty_sentence_is_used_with_a_warning(tmp_path, caplog):
    path = write(tmp_path / "a.tsv", [("가", "나", "entailment"), ("가", " ", "contradiction")])
    assert as_tuples(load_kor_nli([path], 0)) == [("가", "나", ""), ("나", "가", "")]
    (record,) = caplog.records
    assert f"{path}:3:" in record.getMessage()


def test_train_files_are_found_in_sorted_order(tmp_path):
    folder = tmp_path / "KorNLI"
    folder.mkdir()
    for name in ("snli_1.0_train.ko.tsv", "multinli.train.ko.tsv", "xnli.dev.ko.tsv", "b.train.ko.tsv.bak"):
        (folder / name).touch()
    names = ["multinli.train.ko.tsv", "snli_1.0_train.ko.tsv"]
    assert [path.name for path in find_kor_nli_train_files(tmp_path)] == names
    for path in folder.glob("*train.ko.tsv"):
        path.unlink()
    for missing in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match=r"no KorNLI train file .*; give "):
            find_kor_nli_train_files(missing)


def test_git_blob_ids_of_the_real_files(kor_nlu, run_script):
    result = run_script("data_util.py", "--verify", kor_nlu)
    lines = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert len(lines) == 7
    for name, verdict in lines.items():
        assert verdict == ("ok" if (kor_nlu / name).exists() else "missing")
    assert result.returncode == (0 if set(lines.values()) == {"ok"} else 2)


def test_verify_tells_what_differs(tmp_path):
    (tmp_path / "KorSTS").mkdir()
    (tmp_path / "KorSTS" / "sts-dev.tsv").write_bytes(b"changed\n")
    blob = hashlib.sha1(b"blob 8\0changed\n").hexdigest()
    results = verify(tmp_path)
    assert results.pop("KorSTS/sts-dev.tsv").startswith(f"differs (git blob {blob}, official 3686d93")
    assert set(results.values()) == {"missing"} and len(results) == 6
