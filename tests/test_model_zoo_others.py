"""Other families through training, benchmark, export and search, each equal to plain transformers."""

import pytest

import zoo

NAMES = ["modernbert", "deberta", "deberta-v2", "deberta-v2-conv", "deberta-v2-plain", "t5", "gpt2"]


@pytest.mark.parametrize("name", NAMES)
def test_family(name, toy_base, toy_data, tmp_path, capsys):
    zoo.drive(zoo.write_encoder(name, toy_base, tmp_path / "base"), toy_data, tmp_path, capsys)


def test_static_embeddings(toy_base, toy_data, tmp_path, capsys):
    """All but the export, which says in one line what it needs."""
    zoo.drive(zoo.write_static(toy_base, tmp_path / "base"), toy_data, tmp_path, capsys, zoo.static_embeddings)
