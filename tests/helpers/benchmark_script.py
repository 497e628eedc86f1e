"""bin/benchmark.py in this process: the script's own entry, without the seconds its imports take."""

import importlib.util
import sys
from pathlib import Path
from unittest import mock

import pytest

from kf_deberta.cli import run

SCRIPT = Path(__file__).resolve().parents[2] / "bin" / "benchmark.py"


def run_benchmark(*arguments: object) -> int:
    """Run the script with these arguments; its output goes to pytest's capture. Returns the exit status."""
    spec = importlib.util.spec_from_file_location("benchmark_script_main", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with mock.patch.object(sys, "argv", [str(SCRIPT), *map(str, arguments)]), pytest.raises(SystemExit) as exit_info:
        run(module.main)
    return exit_info.value.code
