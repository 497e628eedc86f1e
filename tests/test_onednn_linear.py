"""Linear layers through oneDNN give torch's numbers; where they are not worth it nothing changes."""

import pytest
import torch

from deberta_models import relative_error
from kf_deberta.model import cpu
from kf_deberta.model.cpu import OneDnnLinear, use_onednn_linear

needs_operator = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN linear"
)


@pytest.fixture
def any_processor(monkeypatch):
    """The products are right on every processor; only their speed differs."""
    monkeypatch.setattr(cpu, "_worthwhile", lambda: True)


@needs_operator
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 4), (130,)])
def test_output_and_gradients(any_processor, shape, bias):
    torch.manual_seed(0)
    layer = torch.nn.Linear(400, 384, bias=bias)
    states = torch.randn(*shape, 400, requires_grad=True)
    weights = torch.randn(*shape, 384)
    exact = layer.weight.double(), layer.bias.double() if bias else None
    expected = torch.nn.functional.linear(states.double(), *exact)
    inputs = (states, *layer.parameters())
    expected_gradients = torch.autograd.grad((expected * weights).sum(), inputs)
    assert use_onednn_linear(layer) == 1 and use_onednn_linear(layer) == 0
    actual = layer(states)
    gradients = torch.autograd.grad((actual * weights).sum(), inputs)
    assert relative_error(actual.double(), expected) <= 1e-6
    for mine, theirs in zip(gradients, expected_gradients, strict=True):
        assert relative_error(mine, theirs) <= 2e-6


@needs_operator
def test_second_derivatives(any_processor):
    torch.manual_seed(0)
    layer = torch.nn.Linear(384, 384)
    states = torch.randn(3, 384, requires_grad=True)

    def second():
        (gradient,) = torch.autograd.grad(layer(states).pow(3).sum(), states, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), layer.weight)[0]

    expected = second()
    use_onednn_linear(layer)
    assert relative_error(second(), expected) <= 1e-5


def test_other_precisions_take_the_library_s_way(any_processor):
    layer = torch.nn.Linear(384, 384)
    use_onednn_linear(layer)
    states = torch.randn(2, 384)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(states).dtype is torch.bfloat16
    assert layer.double()(states.double()).dtype is torch.float64
    assert layer(states[:0].double()).shape == (0, 384)


def test_small_layers_and_names_stay(any_processor):
    model = torch.nn.Sequential(torch.nn.Linear(384, 384), torch.nn.Linear(384, 8))
    names = list(model.state_dict())
    assert use_onednn_linear(model) == 1
    assert type(model[0]) is OneDnnLinear and type(model[1]) is torch.nn.Linear
    assert list(model.state_dict()) == names


def test_nothing_on_processors_that_do_not_gain(monkeypatch):
    monkeypatch.setattr(cpu, "_worthwhile", lambda: False)
    assert use_onednn_linear(torch.nn.Linear(400, 400)) == 0


@needs_operator
def test_graphs_hold_the_ordinary_product(any_processor):
    layer = torch.nn.Linear(384, 384)
    use_onednn_linear(layer)
    program = torch.export.export(layer, (torch.randn(2, 384),))
    assert not any("mkldnn" in str(node.target) for node in program.graph.nodes)
    traced = torch.jit.trace(layer, torch.randn(2, 384))
    assert "mkldnn" not in str(traced.inlined_graph)
