"""BERT's relatives through training, benchmark, export and search, each equal to plain transformers."""

import pytest

import zoo


@pytest.mark.parametrize("name", ["bert", "electra", "albert", "roberta", "xlm-roberta", "mpnet", "distilbert"])
def test_family(name, toy_base, toy_data, tmp_path, capsys):
    zoo.drive(zoo.write_encoder(name, toy_base, tmp_path / "base"), toy_data, tmp_path, capsys)
