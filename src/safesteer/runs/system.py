"""Versions, hardware, and the peak memory of a stage.

torch is used only if it is imported already: commands that need no model stay fast.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("safesteer", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm")


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def hardware() -> dict[str, Any]:
    """Platform, processor, cores that this process may use, memory in bytes, GPU names."""
    return {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": _cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": _gpu_names(),
    }


class MemorySampler:
    """Measures the peak memory between start() and stop().

    A thread samples the resident memory of this process; torch keeps the exact peak of each GPU.
    """

    def __init__(self, interval: float = 0.2) -> None:
        self._interval = interval
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._host_peak = 0

    def start(self) -> None:
        if cuda := _cuda():
            for device in range(cuda.device_count()):
                cuda.reset_peak_memory_stats(device)
        self._sample()
        self._thread = threading.Thread(target=self._run, name="memory-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._sample()

    @property
    def peak_bytes(self) -> int:
        """Peak bytes so far: of the process, plus its peaks on all GPUs."""
        return self._host_peak + self.gpu_peak_bytes

    @property
    def gpu_peak_bytes(self) -> int:
        """Peak bytes on all GPUs; 0 without CUDA."""
        cuda = _cuda()
        if cuda is None:
            return 0
        return sum(cuda.max_memory_allocated(device) for device in range(cuda.device_count()))

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        with suppress(psutil.Error):
            self._host_peak = max(self._host_peak, self._process.memory_info().rss)


def _cuda() -> Any:
    """torch.cuda if this process has used it, else None: measuring must not set up a GPU."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return cuda if cuda is not None and cuda.is_initialized() else None


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu_names() -> list[str]:
    try:
        from torch import cuda
    except ImportError:
        return []
    if not cuda.is_available():
        return []
    return [cuda.get_device_name(device) for device in range(cuda.device_count())]
