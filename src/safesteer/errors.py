"""Errors that a person can act on, and text that is safe to show.

Every message is one line: what happened, where, and what to try. The command line prints it without
a traceback and exits with ``exit_code``; in Python the classes are ordinary exceptions.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable

# What a terminal or browser would obey instead of show: control characters, marks that reorder
# text, halves of surrogate pairs (which have no UTF-8). Joiners of emoji and Persian stay.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff"
    "\ud800-\udfff\ufffe\uffff]"
)
# Keys by the prefixes that their issuers give them, JSON web tokens, and passwords in addresses.
_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"sk-(?:[a-z0-9]+-)*(?=[a-z_]*[A-Z0-9])[A-Za-z0-9_]{8,}"
    r"|(?:hf|gsk|gh[a-z]|github_pat)_[A-Za-z0-9_]{16,}"
    r"|(?:xai|pplx|nvapi|glpat|xox[a-z])-[A-Za-z0-9_-]{16,}"
    r"|(?:AIza|AKIA|eyJ)[A-Za-z0-9_.-]{16,})"
    r"|(?<=://)[^/\s@]*:[^/\s@]*(?=@)"
)

_OF_PYTHON = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NameError,
    RecursionError,
    TypeError,
    UnicodeError,
)
_REASON = 200  # characters of a library's message


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


def reason(error: BaseException) -> str:
    """Return ``: `` and the start of a library's message, to be put after what failed.

    Empty for an error that speaks of Python's objects, as damaged content causes them.
    """
    text = re.sub(r"\b[A-Z]\w*(Error|Exception): ", "", one_line(error))
    if isinstance(error, _OF_PYTHON) or text == type(error).__name__:
        return ""
    return f": {text[:_REASON].rstrip('.')}{'...' if len(text) > _REASON else ''}"


def without_advice(error: SafeSteerError) -> str:
    """What happened and where, without what to try: for an error that advises better."""
    return str(error).partition(". Try: ")[0]


def printable(text: str, *, lines: bool = True) -> str:
    """`text` with characters that a screen would obey spelled out: an escape becomes ``\\x1b``.

    With `lines`, line breaks and tabs stay. Printable text comes back as it is.
    """
    text = text.replace("\r\n", "\n")
    if not lines:
        text = text.replace("\n", "\\n")
    return _OBEYED.sub(_spelled, text)


def _spelled(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def hide_keys(text: str) -> str:
    """`text` without what looks like a key or password, or is one of this process's environment."""
    for name, value in os.environ.items():
        if not name.endswith(("KEY", "TOKEN", "SECRET", "PASSWORD")):
            continue
        if len(value) >= 12 and not os.path.exists(value):  # a path names the file of a key
            text = text.replace(value, f"${name}")
    return _KEY.sub("(hidden)", text)
