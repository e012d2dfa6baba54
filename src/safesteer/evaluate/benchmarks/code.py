"""Execution of a program written by a model, to see whether it passes its tests.

It runs in its own process with a time and memory limit, an empty folder and none of our environment
variables. This is not a sandbox: it can read files and use the network. Nothing runs unless the
user allows it (--allow-code-execution).
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

SECONDS = 10
MEMORY_BYTES = 4 << 30

_LIMITS = f"""\
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES}, {MEMORY_BYTES}))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
except (ImportError, ValueError, OSError):
    pass
"""


def passes(program: str, tests: str, seconds: float = SECONDS) -> bool:
    """Whether `program` followed by `tests` runs to its end within `seconds`."""
    # A program that exits early with code 0 cannot print the secret that ends a complete run.
    secret = secrets.token_hex(16)
    ending = f"\nprint({secret!r}, flush=True)\n"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "program.py"
        # A model can write half a surrogate pair, which has no UTF-8.
        path.write_text(_LIMITS + program + "\n" + tests + ending, "utf-8", errors="replace")
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(path)],
            cwd=folder,
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            # It may have started child processes, which share its session.
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
    return printed.endswith(secret.encode() + b"\n")
