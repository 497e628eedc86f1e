"""Linear layers through oneDNN give torch's numbers; freed memory is reused."""

import platform
import subprocess
import sys

import pytest
import torch

from deberta_models import relative_error
from kf_deberta.model import cpu
from kf_deberta.model.cpu import use_onednn_linear


@pytest.fixture
def any_processor(monkeypatch):
    """The products are right on every processor; only their speed differs."""
    monkeypatch.setattr(cpu, "_worthwhile", lambda: True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 4), (130,)])
def test_output_and_gradients(any_processor, shape, bias):
    torch.manual_seed(0)
    layer = torch.nn.Linear(400, 384, bias=bias)
    states = torch.randn(*shape, 400, requires_grad=True)
    weights = torch.randn(*shape, 384)
    exact = layer.weight.double(), layer.bias.double() if bias else None
    expected = torch.nn.functional.linear(states.double(), *exact)
    inputs = (states, *layer.parameters())
    expected_gradients = torch.autograd.grad((expected * weights).sum(), inputs)
    use_onednn_linear(layer)
    assert type(layer) is cpu.OneDnnLinear
    actual = layer(states)
    gradients = torch.autograd.grad((actual * weights).sum(), inputs)
    assert relative_error(actual.double(), expected) <= 1e-6
    for mine, theirs in zip(gradients, expected_gradients, strict=True):
        assert relative_error(mine, theirs) <= 2e-6


def test_other_precisions_and_graphs_run_the_library_s_code(any_processor):
    layer, states = torch.nn.Linear(384, 384), torch.randn(2, 384)
    use_onednn_linear(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(states).dtype is torch.bfloat16
    program = torch.export.export(layer, (states,))
    assert not any("mkldnn" in str(node.target) for node in program.graph.nodes)
    assert layer.double()(states.double()).dtype is torch.float64
    assert layer(states[:0].double()).shape == (0, 384)


COUNT_FAULTS = """
import resource
from kf_deberta.model.cpu import keep_freed_memory
for prepare in (bool, keep_freed_memory):
    prepare()
    for _ in range(2):  # the first allocation is new in any case
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = bytearray(40 << 20)
        del block
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_blocks_are_reused(repo):
    result = subprocess.run([sys.executable, "-c", COUNT_FAULTS], cwd=repo, capture_output=True, text=True, check=True)
    returned, kept = map(int, result.stdout.split())
    assert kept * 5 < returned
