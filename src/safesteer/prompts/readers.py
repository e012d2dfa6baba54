"""Rows of JSON, JSON Lines and CSV files, hub data sets and our own data, each with its place."""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from safesteer.errors import InputError, nearest

# The prompt sets of a run, in the order in which results show them.
PROMPT_SETS = ("harmful", "harmless", "borderline")
BUILTIN_PREFIX = "builtin:"
READABLE_SUFFIXES = (".json", ".jsonl", ".csv")
# Such a source is taken for a file, although "data/prompts.txt" could be a hub id.
OTHER_FILE = re.compile(
    r"\.(txt|md|tsv|parquet|arrow|ya?ml|toml|xml|html?|xlsx?|ods|ndjson|pkl|pt|gz|zip)",
    re.IGNORECASE,
)
HUB_ID = re.compile(
    r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(:(?P<config>[^:@]*))?(:(?P<split>[^:@]*))?"
    r"(@(?P<revision>[^@]+))?"
)


@dataclass(frozen=True)
class Row:
    """One row of a source."""

    place: str  # "line 3" or "row 3", counted from 1, for messages
    values: dict[str, object]  # {column: value}


def read_rows(source: str | Path, column: str | None = None) -> list[Row]:
    """Read all rows of a file, a hub data set or "builtin:NAME".

    `column` names the only column of a JSON list of strings; "prompt" by default.
    """
    text = str(source)
    if text == "builtin" or text.startswith(BUILTIN_PREFIX):
        rows = _read_builtin(text)
    elif isinstance(source, Path) or is_file_source(text):
        rows = _read_file(Path(source), column or "prompt")
    else:
        rows, _ = read_hub(text)
    if not rows:
        raise InputError(f"{text} holds no prompts. Try: a source with at least one row")
    return rows


def is_file_source(text: str) -> bool:
    """Whether a source is a file rather than a hub id, by its form or because it exists."""
    path = Path(text)
    if text.startswith((".", "/", "~")) or path.suffix.lower() in READABLE_SUFFIXES:
        return True
    try:
        return OTHER_FILE.fullmatch(path.suffix) is not None or (text != "" and path.exists())
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def _read_builtin(source: str) -> list[Row]:
    name = source.removeprefix(BUILTIN_PREFIX)
    if name not in PROMPT_SETS:
        choices = ", ".join(BUILTIN_PREFIX + known for known in PROMPT_SETS)
        raise InputError(
            f"no prompt set named {source!r}{nearest(source, choices.split(', '))}. Try: {choices}"
        )
    file = resources.files("safesteer.prompts") / "data" / f"{name}.jsonl"
    return list(_parse_json_lines(file.read_text(encoding="utf-8"), source))


def _read_file(path: Path, column: str) -> list[Row]:
    source = str(path)
    suffix = path.suffix.lower()
    try:
        path = path.expanduser()
        if path.is_dir():
            raise InputError(f"{source} is a folder. Try: a .json, .jsonl or .csv file in it")
        if not path.exists():
            siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
            raise InputError(
                f"{source} does not exist{nearest(path.name, siblings)}. Try: check the path"
            )
        if suffix not in READABLE_SUFFIXES:
            raise InputError(
                f"{source} has {f'the extension {suffix!r}' if suffix else 'no extension'}, and"
                " its format is not supported. Try: save the prompts as .json, .jsonl or .csv"
            )
        # utf-8-sig: spreadsheets write a byte-order mark.
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source} is not UTF-8 (byte {error.start + 1}). Try: save it as UTF-8"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{source} cannot be read ({error}). Try: check the path and its permissions"
        ) from error
    if suffix == ".json":
        return list(_parse_json(text, source, column))
    if suffix == ".jsonl":
        return list(_parse_json_lines(text, source))
    return list(_parse_csv(text, source))


def _parse_json(text: str, source: str, column: str) -> Iterator[Row]:
    if not text.strip():
        return
    values = _decode_json(text, source, first_line=1)
    if not isinstance(values, list):
        raise InputError(
            f"{source} must hold a list of prompts or objects, not {_kind(values)}."
            " Try: put the rows between [ and ]"
        )
    for number, value in enumerate(values, start=1):
        if isinstance(value, str):
            value = {column: value}
        yield _object_row(value, source, f"row {number}")


def _parse_json_lines(text: str, source: str) -> Iterator[Row]:
    # Not splitlines(): a JSON string may hold U+2028, which does not end a row.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            value = _decode_json(line, source, first_line=number)
            yield _object_row(value, source, f"line {number}")


def _parse_csv(text: str, source: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for fields in reader:
            if not fields:  # an empty line
                continue
            place = f"line {reader.line_num}"
            if len(fields) > len(header):
                raise InputError(
                    f"{source}, {place}: {len(fields)} fields, but the header has {len(header)}."
                    " Try: put quotes around fields with commas"
                )
            yield Row(place, dict(zip(header, fields, strict=False)))
    except csv.Error as error:
        raise InputError(
            f"{source}, line {reader.line_num}: invalid CSV ({error})."
            " Try: check the quotes, or save the prompts as .jsonl"
        ) from error


def _decode_json(text: str, source: str, first_line: int) -> object:
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(
            f"{source}, line {line}: invalid JSON ({error.msg} at column {error.colno})."
            " Try: correct the line, or write the file again if it was truncated"
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deeply, a number of 5,000 digits
        raise InputError(
            f"{source}, line {first_line}: this JSON cannot be parsed ({error}). Try: simplify it"
        ) from error
    return value


def _object_row(value: object, source: str, place: str) -> Row:
    if not isinstance(value, dict):
        raise InputError(
            f'{source}, {place}: must be an object, not {_kind(value)}. Try: {{"prompt": "..."}}'
        )
    return Row(place, value)


def _kind(value: object) -> str:
    """The JSON name of the type of `value`, with its article."""
    if value is None:
        return "null"
    names = {bool: "a boolean", dict: "an object", list: "a list", str: "a string"}
    return names.get(type(value), "a number")


def read_hub(source: str) -> tuple[list[Row], str | None]:
    """Read the rows of a hub data set, and their commit where the library reveals it.

    `source` is owner/name or owner/name:config:split, either with @revision (branch, tag, commit).
    """
    hub_id = HUB_ID.fullmatch(source)
    if hub_id is None:
        raise InputError(
            f"{source!r} is not a prompt source. Try: a .json, .jsonl or .csv file, a hub data set"
            " (owner/name or owner/name:config:split), or builtin:NAME"
        )
    name, config, split = hub_id["name"], hub_id["config"], hub_id["split"]
    revision = {"revision": hub_id["revision"]} if hub_id["revision"] else {}
    try:
        # Slow to import, and needed here only.
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise InputError(
            f"{source}: hub data sets need the package datasets. Try: pip install datasets"
        ) from error
    try:
        parts = datasets.load_dataset(name, config or None, **revision)
    # The library raises a dozen unrelated types for an unknown id, a gated set or no network.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"{source} is not a file, and cannot be loaded as a hub data set ({reason})."
            " Try: check the name and the network"
        ) from error
    known = [str(part) for part in parts]
    split = split or (known[0] if len(known) == 1 else "train")
    if split not in known:
        raise InputError(
            f"{source} has no split {split!r}{nearest(split, known)}."
            f" Try: {name}:{config or ''}:SPLIT, where SPLIT is one of {', '.join(known)}"
        )
    rows = [Row(f"row {number}", dict(row)) for number, row in enumerate(parts[split], start=1)]
    return rows, commit_of(parts[split])


def commit_of(part: object) -> str | None:
    """The commit of a hub data set's split: the library caches it in a folder of that name."""
    for file in getattr(part, "cache_files", None) or []:
        if found := re.search(r"[/\\]([0-9a-f]{40})[/\\]", str(file.get("filename", ""))):
            return found[1]
    return None
