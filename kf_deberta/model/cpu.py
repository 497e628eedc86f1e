"""Faster linear layers and memory for a CPU, with the same results.

torch multiplies float32 matrices with MKL, which uses its AVX2 kernels on processors not made by Intel. oneDNN, which
is part of torch, uses AVX-512 if the processor has it. Both sum in float32, in another order: the results agree to
rounding.
"""

import contextlib
import ctypes
from pathlib import Path

import torch
from torch import Tensor, nn

MIN_WEIGHTS = 384 * 384  # below this a call costs more than its product saves


def use_onednn_linear(model: nn.Module) -> None:
    """Run large nn.Linear layers of `model` through oneDNN, in place, if this processor gains.

    Parameters, names and state dict stay. Only float32 on the CPU goes through oneDNN; anything else, autocast,
    torch.compile and export use the library's code at each call.
    """
    layers = [m for m in model.modules() if type(m) is nn.Linear and m.weight.numel() >= MIN_WEIGHTS]
    for layer in layers if _worthwhile() else []:
        layer.__class__ = OneDnnLinear


def _worthwhile() -> bool:
    """Return whether this processor has AVX-512 that MKL does not use, and this torch has the operator."""
    has_operator = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    cpuinfo = Path("/proc/cpuinfo")
    is_amd = cpuinfo.is_file() and "AuthenticAMD" in cpuinfo.read_text(errors="replace")
    return has_operator and is_amd and torch.backends.cpu.get_cpu_capability() == "AVX512"


class OneDnnLinear(nn.Linear):
    """nn.Linear that uses oneDNN for float32 on the CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        plain = all(x.dtype is torch.float32 and x.device.type == "cpu" for x in (input, self.weight))
        if not plain or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or input.numel() == 0:
            return super().forward(input)
        return _Product.apply(input.reshape(-1, self.in_features), self.weight, self.bias).view(*input.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """a @ b.T + bias for a [m, k], b [n, k], bias [n] or None."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        need_a, need_b, need_bias = ctx.needs_input_grad
        return (
            _Product.apply(grad, b.t(), None) if need_a else None,
            _Product.apply(grad.t(), a.t(), None) if need_b else None,
            grad.sum(0) if need_bias else None,
        )


def keep_freed_memory() -> None:
    """Make this process keep and reuse the memory it frees, if its C library is glibc.

    glibc returns large blocks to the system when they are freed. The next training step gets them back page by page,
    each page zeroed by the kernel: for the gradient of 99.8 million embedding parameters that takes longer than
    AdamW's pass. Call it before the model is loaded; it holds until the process ends.
    """
    trim_threshold, mmap_max = -1, -4  # numbers of mallopt's parameters, from malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)
