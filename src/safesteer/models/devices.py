"""Device and dtype of a model, from the settings."""

from __future__ import annotations

import time
from functools import cache

import torch

from safesteer import distributed
from safesteer.config.rules import DEVICE_MAP
from safesteer.config.settings import ModelSettings
from safesteer.errors import InputError

_CUDA = torch.device("cuda")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """The device for a setting; `auto` is CUDA if there is any, else the CPU.

    Each of several processes gets its own CUDA device. Apple's MPS is not used: it has no float64,
    which mean activations need.

    Raises:
        InputError: the device does not exist here.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        several = distributed.world_size() > 1
        return torch.device("cuda", distributed.local_rank()) if several else _CUDA
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(
            f"model.device = '{name}' is not a device. Try: auto, cpu or cuda"
        ) from None
    if device.type == "mps":
        raise InputError(f"model.device = '{name}': MPS has no float64, which we need. Try: cpu")
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise InputError(f"model.device = '{name}' cannot be used. Try: auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"model.device = '{name}': there is no CUDA device. Try: cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"model.device = '{name}': the CUDA devices are 0 to {torch.cuda.device_count() - 1}."
            " Try: one of them, or auto"
        )
    return device


def check_device_map(settings: ModelSettings) -> None:
    """Raise InputError if model.advanced.device_map cannot be used."""
    device_map = settings.advanced.device_map
    if device_map is not None and distributed.world_size() > 1:
        raise InputError(
            f"model.advanced.device_map = '{device_map}' spreads one model over the devices of one"
            f" process, and there are {distributed.world_size()} processes. Try: leave it out, or"
            " start one process"
        )
    if complaint := DEVICE_MAP.complaint(model=settings):  # a copy of settings is not validated
        raise InputError(complaint)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The weights' type for a setting; `auto` is bfloat16 if that is faster here, else float32."""
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if bfloat16_speedup() >= 1.2 else torch.float32


@cache
def bfloat16_speedup(size: int = 768, rounds: int = 40) -> float:
    """Speed of a bfloat16 matrix product relative to float32 on this CPU, measured once.

    The best of many alternating rounds, since other work disturbs most of them and all runs on one
    machine must choose the same type.
    """
    types = (torch.float32, torch.bfloat16)
    pairs = {t: (torch.ones(256, size, dtype=t), torch.ones(size, size, dtype=t)) for t in types}
    best = dict.fromkeys(types, float("inf"))
    for _ in range(rounds):
        for dtype, (a, b) in pairs.items():
            start = time.perf_counter()
            a @ b
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[torch.float32] / best[torch.bfloat16]
