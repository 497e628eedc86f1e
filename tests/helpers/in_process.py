"""A script of the repository in this process, as `python SCRIPT ARGUMENTS`, without the seconds its imports take."""

import gc
import runpy
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


def run_here(script: str, *arguments: object) -> int:
    """Run the script with these arguments; its output goes to pytest's capture. Returns the exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(REPO / script), *map(str, arguments)])
        patch.setattr(sys, "path", [str((REPO / script).parent), *sys.path])
        try:
            runpy.run_path(str(REPO / script), run_name="__main__")
        except SystemExit as stopped:
            return stopped.code or 0
        finally:
            gc.collect()  # what the end of a process does: locks are released
    return 0
