"""Trackers that a run reports to: whether they are installed, looked at before a run begins.

What is sent is the figures of every update and the settings of the training, no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from safesteer.errors import InputError


def check_trackers(names: Sequence[str]) -> None:
    """Raise InputError for a tracker whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise InputError(f"--report-to {name}: not installed here; `pip install {name}`")
