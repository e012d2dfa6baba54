"""Check that the requested trackers are installed, before a run starts.

A tracker receives the figures of every step and the settings of the training, and no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from safesteer.errors import InputError


def check_trackers(names: Sequence[str]) -> None:
    """Raise InputError for a tracker whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise InputError(
                f"--report-to {name}: this package is not installed. Try: pip install {name}, or"
                " another tracker"
            )
