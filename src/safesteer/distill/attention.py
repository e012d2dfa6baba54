"""Attention kernels that are safe or fast in a backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def sound_attention() -> Iterator[None]:
    """Disable cuDNN's attention kernels while the context is open.

    Their gradients can be NaN under a mask, in 16 bits on Hopper GPUs
    (https://github.com/pytorch/pytorch/issues/196678); torch has other kernels.
    """
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


@contextmanager
def training_attention(model: Any) -> Iterator[None]:
    """Use `sound_attention`, and eager attention on the CPU, while the context is open.

    On the CPU the backward pass of torch's fused kernel takes half as long again
    (research/log/2026-11-22-cpu-speed.md).
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
