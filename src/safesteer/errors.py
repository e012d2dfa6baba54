"""Errors that a person can act on.

Every message is one line: what happened, where, and what to try. The command line prints it without
a traceback and exits with ``exit_code``; in Python the classes are ordinary exceptions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SafeSteerError(Exception):
    """The work failed although the input was right (exit code 1)."""

    exit_code = 1


class InputError(SafeSteerError):
    """The input is wrong: a model, a file, an option or a setting (exit code 2)."""

    exit_code = 2


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the known name nearest to `name`, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def one_line(error: BaseException) -> str:
    """A library's error message without line breaks; the error's class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
