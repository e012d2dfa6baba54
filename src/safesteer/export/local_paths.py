"""Paths of this machine, shortened to their last part before a run is shared."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import markupsafe


def local_paths(values: Any) -> dict[str, str]:
    """{path: its last part} of all paths in nested values, in every spelling that a file may use.

    A path is absolute or begins with `~`, `./` or `../`; `a/b` may be a name on the hub. The folder
    of a GGUF file counts, too.
    """
    if isinstance(values, dict | list):
        inner = values.values() if isinstance(values, dict) else values
        return {path: name for value in inner for path, name in local_paths(value).items()}
    given = str(values).rpartition("=")[2]  # judges are NAME=FOLDER
    if not (os.path.isabs(given) or re.match(r"~[^/]*/|\.\.?/", given)):
        return {}
    name = os.path.basename(os.path.normpath(given))
    full = os.path.abspath(os.path.expanduser(given))
    found = {path: name for path in (given, os.path.normpath(given), full, os.path.realpath(full))}
    if given.endswith(".gguf"):
        folders = [os.path.dirname(path) for path in found]
        found |= {path: os.path.basename(path) for path in folders if len(path) > 1}
    return {
        spelled: short
        for path, name in found.items()
        if path.strip(os.sep) and name not in ("", ".", "..")
        for spelled, short in zip(_spellings(path), _spellings(name), strict=True)
    }


def shorten(paths: dict[str, str], values: Any) -> Any:
    """The same text, or nested values, with every one of `paths` replaced by its name."""
    if isinstance(values, dict):
        return {key: shorten(paths, value) for key, value in values.items()}
    if isinstance(values, list):
        return [shorten(paths, value) for value in values]
    if not isinstance(values, str):
        return values
    for path in sorted(paths, key=len, reverse=True):
        name = paths[path].replace("\\", r"\\")
        values = re.sub(rf"(?<![\w./-]){re.escape(path)}(?![\w-])", name, values)
    return values


def _spellings(path: str) -> list[str]:
    """A path as text, JSON and HTML spell it; libraries escape non-ASCII characters in JSON."""
    in_json = [json.dumps(path, ensure_ascii=ascii)[1:-1] for ascii in (True, False)]
    return [*in_json, str(markupsafe.escape(path)), path]
