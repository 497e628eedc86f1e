"""dev/speed.py train and encode print tables whose numbers hold together."""

import argparse
import re
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kf_deberta.cli import InputError

ARGUMENTS = ["--layers", "1", "--vocab", "200", "--rounds", "1"]


@pytest.fixture
def speed_modules(repo, monkeypatch):
    monkeypatch.syspath_prepend(str(repo / "bin"))
    import speed_encode
    import speed_train

    return speed_train, speed_encode


def _rows(output: str) -> list[list[str]]:
    lines = [line for line in output.splitlines() if line.startswith("| ") and not line.startswith("| variant")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_train_as_a_user_runs_it(run_script, tmp_path):
    sizes = ["--sts_batch_size", "2", "--nli_batch_size", "2"]
    result = run_script("dev/speed.py", "train", *ARGUMENTS, *sizes, "--no_memory", cwd=tmp_path, check=True)
    assert "lengths drawn from the built-in distribution" in result.stdout
    assert "STS: 2 rows per batch" in result.stdout and "NLI: 2 rows per batch" in result.stdout
    rows = _rows(result.stdout)
    assert [row[0] for row in rows[:2]] == ["library eager", "fast attention"]
    for _, seconds, ratio, share, peak in rows:
        assert float(seconds) > 0 and 0 < int(share.rstrip("%")) < 120 and peak == "not measured"
        if ratio != "1":
            middle, low, high = map(float, re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", ratio).groups())
            assert 0 < low <= middle <= high


def test_operations_of_a_step_against_torch_s_counter(speed_modules):
    import speed_model

    speed_train, _ = speed_modules
    model = speed_model.variants_of(speed_model.base_model(layers=2, vocab=50, seed=0))["fast attention"].model.train()
    batch = speed_model.padded_batch([24, 24, 24], 50, torch.Generator())
    with FlopCounterMode(display=False) as counter:
        model(**batch).last_hidden_state.sum().backward()
    least = speed_train.step_flops(batch["attention_mask"], layers=2)
    # counted: two distances more than occur, and every token times every distance
    assert least <= counter.get_total_flops() <= 1.03 * least


def test_merged_columns_give_the_same_embeddings(speed_modules):
    import speed_model

    model = speed_model.base_model(layers=1, vocab=50, seed=0).eval()
    fast = speed_model.variants_of(model)["fast attention"].model
    ids = torch.Generator().manual_seed(0)
    columns = [speed_model.padded_batch(lengths, 50, ids) for lengths in ([3, 9], [12, 5])]
    expected = speed_model.Variant(model).embed_columns(columns)
    for layout in ("packed", "padded", None):
        for merged in (True, False):
            got = speed_model.Variant(fast, layout, merged=merged).embed_columns(columns)
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, expected, strict=True))


def test_peak_of_the_fast_step_is_lower(speed_modules):
    speed_train, _ = speed_modules
    parser = argparse.ArgumentParser()
    speed_train.add_arguments(parser)
    args = parser.parse_args([*ARGUMENTS, "--nli_batch_size", "24"])
    args.child = "nli"
    peaks = {}
    for args.variant in ("fast attention", "library eager"):
        peaks[args.variant] = speed_train._peak_of_step(args)
    assert 0 < peaks["fast attention"] < peaks["library eager"]


def test_encode_in_torch(speed_modules, kor_nlu, tiny_deberta, capsys):
    _, speed_encode = speed_modules
    parser = argparse.ArgumentParser()
    speed_encode.add_arguments(parser)
    flags = ["--no_onnx", "--sentences", "6", "--batch_size", "4", "--dataset_path", str(kor_nlu)]
    speed_encode.run(parser.parse_args([*ARGUMENTS, *flags, "--tokenizer", str(tiny_deberta / "tokenizer.json")]))
    output = capsys.readouterr().out
    assert "lengths of sts-test.tsv, tokens counted with" in output
    assert "6 sentences sorted by length" in output
    rows = _rows(output)
    assert len(rows) % 3 == 0 and all(float(row[1]) > 0 for row in rows)


def test_bad_numbers_are_refused_before_any_work(speed_modules, monkeypatch):
    import speed

    monkeypatch.setattr(sys, "argv", ["speed.py", "train", "--rounds", "0"])
    with pytest.raises(InputError, match="--rounds 0: must be 1 or more"):
        speed.main()


def test_every_subcommand_is_listed(repo, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(repo / "bin"))
    import speed

    monkeypatch.setattr(sys, "argv", ["speed.py", "--help"])
    with pytest.raises(SystemExit) as exit_info:
        speed.main()
    assert exit_info.value.code == 0
    output = capsys.readouterr().out
    assert all(re.search(rf"^ +{name} ", output, re.MULTILINE) for name in ("train", "encode", "load"))
