"""The processes of one run, as `accelerate launch` and torchrun start them.

Training runs on all of them; everything else the main process does as if it were alone, while the
others wait. They meet in the launcher's key-value store, asked again and again from Python: such a
wait has no time limit, needs no process group, and ends when another process says that it failed.
A process that is alone pays nothing: torch is imported once there is somebody to meet.
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

# What a launcher sets for each process.
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_HIDDEN = (*_LAUNCHED, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK")
_HIDDEN_PREFIXES = ("ACCELERATE_USE_", "FSDP_", "TORCHELASTIC_")
_FAILED = "failed"
_PAUSE = 0.2  # seconds between two looks into the store
_ARRIVAL = 3600.0  # seconds in which all processes have to have started
LOST = "another process of this run ended or is out of reach; the same command goes on with the run"

_state: dict[str, Any] = {"store": None, "meetings": 0}


class Stopped(SafeSteerError):
    """Another process failed, and has said why."""


def count() -> int:
    """How many processes work on this run."""
    if any(name not in os.environ for name in _LAUNCHED):
        return 1
    return int(os.environ["WORLD_SIZE"])


def index() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def local_index() -> int:
    """Which of the processes on this machine this one is; the number of its device."""
    return int(os.environ.get("LOCAL_RANK", 0)) if count() > 1 else 0


def is_main() -> bool:
    """Whether this process prints and writes; true for a process that is alone."""
    return index() == 0


def layout() -> str:
    """How training spreads the weights over processes: "whole" copies, "fsdp" or "deepspeed"."""
    for name in ("fsdp", "deepspeed"):
        if count() > 1 and os.environ.get(f"ACCELERATE_USE_{name.upper()}", "").lower() == "true":
            return name
    return "whole"


@contextmanager
def alone() -> Iterator[None]:
    """While inside, nothing in this process, and no library, knows of the others."""
    names = [n for n in os.environ if n in _HIDDEN or n.startswith(_HIDDEN_PREFIXES)]
    hidden = {name: os.environ.pop(name) for name in names} if count() > 1 else {}
    try:
        yield
    finally:
        os.environ.update(hidden)


def on_main(work: Callable[[], Any]) -> Any:
    """`work`'s result (a JSON value) on every process; the main one does it, alone.

    Raises Stopped on the others when it, or any other, fails.
    """
    if count() == 1:
        return work()
    if is_main():
        with alone():
            result = work()
        _store().set(_next_key(), json.dumps(result))
        return result
    key = _next_key()
    _wait(lambda: _store().check([key]))
    return json.loads(_store().get(key))


def meet() -> None:
    """Wait until every process is here."""
    if count() == 1:
        return
    key = _next_key()
    _store().add(key, 1)
    _wait(lambda: _store().add(key, 0) >= count())


def linger() -> None:
    """Let the others look into the store once more, before the process that may hold it ends."""
    if count() > 1 and is_main():
        time.sleep(2 * _PAUSE)


def first_to_fail() -> bool:
    """Tell the others that this process failed; whether it is the first, whose word counts."""
    if count() == 1:
        return True
    own = str(index())
    try:
        return _store(seconds=5.0).compare_set(_FAILED, "", own).decode() == own
    except Exception:  # the store went with the process that held it
        return True


@contextmanager
def together() -> Iterator[None]:
    """A part that all processes do: one that another's end breaks off fails with one line."""
    try:
        yield
    except RuntimeError as error:
        if count() > 1 and _is_lost(error):
            raise SafeSteerError(LOST) from error
        raise


def part() -> None:
    """End the process group and accelerate's memory of it: the work of all processes is done."""
    from accelerate.state import AcceleratorState
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


def _next_key() -> str:
    # All processes go through the same meetings in the same order.
    _state["meetings"] += 1
    return f"meeting-{_state['meetings']}"


def _store(seconds: float = _ARRIVAL) -> Any:
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
            time.sleep(_PAUSE)
    except RuntimeError as error:  # the store is gone, and the main process with it
        raise SafeSteerError(LOST) from error


def _is_lost(error: RuntimeError) -> bool:
    """Whether it comes from a connection to another process; gloo's errors have no class."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or any(word in str(error) for word in ("gloo", "NCCL"))
