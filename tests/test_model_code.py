"""Models that bring Python code: run only with --trust_remote_code, which the commands that a run prints carry."""

import json
import re
import shlex
import sys

import pytest
from transformers import dynamic_module_utils

import zoo
from in_process import run_here

CODE = """
from transformers import BertConfig, BertModel


class OwnConfig(BertConfig):
    model_type = "own"


class OwnModel(BertModel):
    config_class = OwnConfig

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask)
        output.last_hidden_state = 2 * output.last_hidden_state
        return output
"""


@pytest.fixture
def own(toy_base, tmp_path, monkeypatch):
    """An encoder of a kind that only its own code knows."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = zoo.write_encoder("bert", toy_base, tmp_path / "own")
    (path / "own_code.py").write_text(CODE)
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own_code.OwnConfig", "AutoModel": "own_code.OwnModel"}}
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_printed_commands_carry_the_flag(own, toy_data, tmp_path, capsys):
    train = (
        "training_sts.py",
        "--model_name_or_path",
        own,
        "--dataset_path",
        toy_data,
        "--output_dir",
        tmp_path / "o",
    )
    data = ("--sts_dataset_path", toy_data / "KorSTS")
    for refused in (train, ("bin/benchmark.py", "--model_name_or_path", own, *data)):
        assert run_here(*refused) == 2
        assert f"{own}: needs Python code of its own repository" in capsys.readouterr().err
    assert run_here(*train, "--trust_remote_code", "--max_rounds", 2, "--max_seq_length", 16) == 0
    printed = capsys.readouterr().out
    for kind in ("benchmark", "export"):
        _, script, *arguments = shlex.split(re.search(rf"^{kind}: +(python .*)$", printed, re.MULTILINE)[1])
        assert "--trust_remote_code" in arguments
        extra = ["--bootstrap", 0] if kind == "benchmark" else ["--output_dir", tmp_path / "onnx"]
        assert run_here(script, *arguments, *extra) == 0, capsys.readouterr().err
    run = arguments[arguments.index("--model_name_or_path") + 1]
    assert run_here("bin/search.py", "물음", "--model_name_or_path", run) == 2
    assert run_here("bin/search.py", "물음", "--model_name_or_path", run, "--trust_remote_code") == 0
