"""Peak memory of a block of code, beyond what was allocated before it."""

from __future__ import annotations

import ctypes
import threading
import time
from contextlib import suppress
from types import TracebackType

import psutil
import torch


class PeakMemory:
    """A context that measures the peak memory inside it, beyond what was allocated before.

    On CUDA it is what torch allocated; else the resident memory of the process, which a thread
    samples every two milliseconds, since the system's high-water mark includes earlier peaks.

    Attributes:
        bytes: the peak, set when the context ends.
        unused: free chunks that glibc's malloc held at the peak; 0 with another C library.
    """

    bytes = 0
    unused = 0

    def __enter__(self) -> PeakMemory:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return self
        self._process = psutil.Process()
        self._before = self._largest = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if torch.cuda.is_available():
            self.bytes = torch.cuda.max_memory_allocated() - self._before
            return
        self._done.set()
        self._thread.join()
        self.bytes = self._largest - self._before

    def _sample(self) -> None:
        while not self._done.is_set():
            now = self._process.memory_info().rss
            if now > self._largest:
                self._largest, self.unused = now, _held_by_malloc()
            time.sleep(0.002)


class _Mallinfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc 2.33 and later; fordblks: bytes in free chunks."""

    _fields_ = [(f"other{place}", ctypes.c_size_t) for place in range(8)] + [
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    ]


def _held_by_malloc() -> int:
    with suppress(OSError, AttributeError):
        mallinfo = ctypes.CDLL(None).mallinfo2
        mallinfo.restype = _Mallinfo
        return int(mallinfo().fordblks)
    return 0
