"""The peak of memory while something runs, beyond what was there before."""

from __future__ import annotations

import threading
import time
from types import TracebackType

import psutil
import torch


class PeakMemory:
    """A context; `bytes` is then the largest amount of memory beyond that at its beginning.

    On CUDA what torch allocated; else the resident memory of the process, sampled every two
    milliseconds by a thread (the high-water mark of the system would also hold what came before).
    """

    bytes = 0

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
            self._largest = max(self._largest, self._process.memory_info().rss)
            time.sleep(0.002)
