"""Which kernels of attention a backward pass may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def sound_attention() -> Iterator[None]:
    """Compute without those kernels of attention whose backward can be wrong.

    On CUDA these are cuDNN's, whose gradients can be NaN where there is a mask, in 16 bits on
    Hopper cards (https://github.com/pytorch/pytorch/issues/196678): torch has others.
    """
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


@contextmanager
def training_attention(model: Any) -> Iterator[None]:
    """Train with `sound_attention`, and on the CPU with plain attention.

    The backward of torch's fused one is slower there. Measured on the built-in model at 32 x 61
    tokens: 6.5 s fused, 4.2 s plain, forward and backward (research/log/2026-11-22-cpu-speed.md).
    """
    fused = model.device.type == "cpu" and model.config._attn_implementation == "sdpa"
    if fused:
        model.set_attn_implementation("eager")
    try:
        with sound_attention():
            yield
    finally:
        if fused:
            model.set_attn_implementation("sdpa")
