"""Small DebertaV2 models, padded batches, and the comparison of a switched model with the library's own."""

import copy

import torch
from transformers import DebertaV2Config, DebertaV2Model

from kf_deberta.model.attention import use_fast_attention

# kakaobank/kf-deberta-base's options at a small size, and weights so large that a wrong distance changes the output
BASE = {"vocab_size": 120, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BASE |= {"intermediate_size": 96, "max_position_embeddings": 512, "position_buckets": 256, "initializer_range": 0.15}
BASE |= {"relative_attention": True, "max_relative_positions": -1, "pos_att_type": ["p2c", "c2p"]}
BASE |= {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0}
BASE |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def library_model(**options) -> DebertaV2Model:
    """A random model with the library's attention."""
    torch.manual_seed(0)
    return DebertaV2Model(DebertaV2Config(**(BASE | options))).train()


def switched(model: DebertaV2Model) -> DebertaV2Model:
    """A copy of `model` on the fast path."""
    fast = copy.deepcopy(model)
    assert use_fast_attention(fast) == 1
    return fast


def padded_batch(lengths: list[int], columns: int | None = None, left: bool = False) -> dict[str, torch.Tensor]:
    """Random token ids with padding to `columns`, on the right or the left."""
    columns = columns or max(lengths)
    generator = torch.Generator().manual_seed(sum(lengths))
    mask = torch.zeros(len(lengths), columns, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, columns - length :] = 1
        if not left:
            mask[row] = mask[row].flip(0)
    ids = torch.randint(3, BASE["vocab_size"], mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask}


def output_and_gradients(model, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Output at the real tokens (zero elsewhere) and the gradient of a random weighting of it, by parameter name."""
    model.zero_grad()
    mask = batch["attention_mask"].bool().unsqueeze(-1)
    output = model(**batch).last_hidden_state.masked_fill(~mask, 0.0)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output.float() * weights).sum().backward()
    return output.detach().float(), {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest value of `expected`."""
    assert actual.shape == expected.shape and torch.isfinite(actual).all()
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def assert_same(fast, library, batch, tolerance: float = 1e-5) -> None:
    """Outputs at real tokens and every parameter's gradient agree to `tolerance`."""
    expected, expected_gradients = output_and_gradients(library, batch)
    actual, gradients = output_and_gradients(fast, batch)
    assert relative_error(actual, expected) <= tolerance
    assert gradients.keys() == expected_gradients.keys()
    largest = max(gradient.abs().max().item() for gradient in expected_gradients.values())
    for name, gradient in gradients.items():
        # zero in exact arithmetic (a key bias under softmax, with c2p alone): both sides hold rounding noise only
        zero = expected_gradients[name].abs().max() < 1e-6 * largest
        error = gradient.abs().max() / largest if zero else relative_error(gradient, expected_gradients[name])
        assert error <= tolerance, name
