"""keep_freed_memory: a block that is freed and needed again costs no new pages."""

import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys
from kf_deberta.model.cpu import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(77)
block = bytearray(1 << 26)
del block
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    block = bytearray(1 << 26)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(repo, mode: str) -> int:
    result = subprocess.run([sys.executable, "-c", COUNT_FAULTS, mode], cwd=repo, capture_output=True, text=True)
    if result.returncode == 77:
        pytest.skip("the C library is not glibc")
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


def test_freed_blocks_are_reused(repo):
    kept, returned = _page_faults(repo, "keep"), _page_faults(repo, "default")
    assert kept * 20 < returned
