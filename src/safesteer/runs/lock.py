"""The lock of a run: one process at a time writes into it.

It is an flock on RUN/.lock, which the system drops when the process ends, however it ends, so that
no lock is ever stale. The file stays, since deleting it would let two processes hold two locks; it
names the owner's process. Without flock (Windows, some network disks) a run works without a lock.
"""

from __future__ import annotations

import errno
import os
import weakref
from contextlib import suppress
from pathlib import Path

from safesteer.errors import InputError
from safesteer.files import write_error

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".lock"


class RunLock:
    """The exclusive right to write into a run, held from construction until release()."""

    def __init__(self, folder: Path) -> None:
        self._descriptor: int | None = None
        path = folder / LOCK_NAME
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise write_error(path, error) from error
        try:
            _acquire(self._descriptor, folder)
        except BaseException:
            self.release()
            raise
        # Only a note for the message that others get; a full disk must not stop a run here.
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, str(os.getpid()).encode())
        _held.add(self)

    def release(self) -> None:
        """Release the run; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    __del__ = release


def _acquire(descriptor: int, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}:
            return  # no flock here
        owner = os.read(descriptor, 32).decode("ascii", "replace")
        if owner == str(os.getpid()):
            message = f"this process has {folder} open already. Try: close it first"
        else:
            message = (
                f"another process ({owner or 'unknown'}) is working in {folder}. Try: wait for it,"
                " stop it, or choose another --output-dir"
            )
        raise InputError(message) from None


# A forked child shares the lock and would keep it when its parent has ended: it lets go at once.
_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _release_in_child() -> None:
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
