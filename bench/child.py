"""One measurement in a process of its own, so that none sees what another left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def in_its_own_process(script: str, *arguments: object) -> Any:
    """The JSON value in the last line that `script` prints; ends this one with its error."""
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])
