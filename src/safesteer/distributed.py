"""The processes of one run, started by `accelerate launch` or torchrun.

All of them train; everything else the main process does as if it were the only one, while the
others wait. They meet in the launcher's key-value store, polled from Python: such a wait has no
time limit, needs no process group, and ends when another process reports a failure. torch is
imported only if there is more than one process.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from safesteer.errors import SafeSteerError

# Variables that a launcher sets for each process.
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_HIDDEN = (*_LAUNCHED, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK")
_HIDDEN_PREFIXES = ("ACCELERATE_USE_", "FSDP_", "TORCHELASTIC_")
_FAILED = "failed"
_POLL = 0.2  # seconds
_START_TIMEOUT = 3600.0  # seconds until all processes must have started
LOST = "lost contact with another process of this run. Try: the same command again, which resumes"

_state: dict[str, Any] = {"store": None, "meetings": 0}


class Stopped(SafeSteerError):
    """Another process failed and has reported why."""


def world_size() -> int:
    """The number of processes of this run."""
    if any(name not in os.environ for name in _LAUNCHED):
        return 1
    return int(os.environ["WORLD_SIZE"])


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_rank() -> int:
    """The number of this process on its machine, which is that of its device."""
    return int(os.environ.get("LOCAL_RANK", 0)) if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process prints and writes; true for a single process."""
    return rank() == 0


def layout() -> str:
    """How training holds the weights: "replicated" in every process, "fsdp" or "deepspeed"."""
    for name in ("fsdp", "deepspeed"):
        enabled = os.environ.get(f"ACCELERATE_USE_{name.upper()}", "").lower() == "true"
        if enabled and world_size() > 1:
            return name
    return "replicated"


@contextmanager
def single_process() -> Iterator[None]:
    """Hide the other processes from this one and its libraries while the context is open."""
    names = [n for n in os.environ if n in _HIDDEN or n.startswith(_HIDDEN_PREFIXES)]
    hidden = {name: os.environ.pop(name) for name in names} if world_size() > 1 else {}
    try:
        yield
    finally:
        os.environ.update(hidden)


def on_main(work: Callable[[], Any]) -> Any:
    """Do `work` in the main process and return its result, a JSON value, in all.

    Raises:
        Stopped: in the others, when any process fails.
    """
    if world_size() == 1:
        return work()
    if is_main():
        with single_process():
            result = work()
        _store().set(_next_key(), json.dumps(result))
        return result
    key = _next_key()
    _wait(lambda: _store().check([key]))
    return json.loads(_store().get(key))


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() == 1:
        return
    key = _next_key()
    _store().add(key, 1)
    _wait(lambda: _store().add(key, 0) >= world_size())


def linger() -> None:
    """Let the others read the store once more before the process that may hold it ends."""
    if world_size() > 1 and is_main():
        time.sleep(2 * _POLL)


def first_to_fail() -> bool:
    """Report to the others that this process failed; whether it is the first to do so."""
    if world_size() == 1:
        return True
    own = str(rank())
    try:
        return _store(seconds=5.0).compare_set(_FAILED, "", own).decode() == own
    except Exception:  # the store went with the process that held it
        return True


@contextmanager
def joint_work() -> Iterator[None]:
    """Work of all processes; if another one ends, it fails with a one-line SafeSteerError."""
    try:
        yield
    except RuntimeError as error:
        if world_size() > 1 and _is_lost(error):
            raise SafeSteerError(LOST) from error
        raise


def destroy_process_group() -> None:
    """End the process group and accelerate's record of it, after the work of all processes."""
    from accelerate.state import AcceleratorState
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


def _next_key() -> str:
    # All processes go through the same meetings in the same order.
    _state["meetings"] += 1
    return f"meeting-{_state['meetings']}"


def _store(seconds: float = _START_TIMEOUT) -> Any:
    if _state["store"] is None:
        from torch.distributed import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        found, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=seconds)))
        _state["store"] = PrefixStore("safesteer", found)
    return _state["store"]


def _wait(done: Callable[[], bool]) -> None:
    try:
        while not done():
            if _store().check([_FAILED]):
                raise Stopped("another process of this run failed")
            time.sleep(_POLL)
    except RuntimeError as error:  # the store is gone, and the main process with it
        raise SafeSteerError(LOST) from error


def _is_lost(error: RuntimeError) -> bool:
    """Whether a connection to another process broke; gloo's errors have no class of their own."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or any(word in str(error) for word in ("gloo", "NCCL"))
