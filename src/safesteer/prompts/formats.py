"""Formats of prompt files: JSON, JSON Lines, YAML, CSV, TSV, plain text, Parquet and Arrow."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from safesteer.errors import InputError, one_line
from safesteer.prompts.rows import CONVERSATION_COLUMNS, Row, Skipped, Table, known_column

TEXT_FORMATS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".yaml", ".yml")
BINARY_FORMATS = (".parquet", ".arrow")
_SEPARATORS = (",", ";", "\t", "|")


def parse_text(text: str, suffix: str, source: str, column: str | None) -> Table:
    """The rows of a text file.

    `suffix` is one of `TEXT_FORMATS`, or "" for a file without one. `column` names the column of
    plain strings; "prompt" by default.
    """
    name = column or "prompt"
    start = text.lstrip()[:1]
    if not start:
        return Table(source, [])
    if suffix in (".csv", ".tsv"):
        return _parse_csv(text, suffix, source, column)
    if suffix in (".yaml", ".yml"):
        return Table(source, _rows_of(_decode_yaml(text, source), source, name))
    if suffix == ".json" or (start == "[" and suffix != ".txt"):
        return Table(source, _parse_json(text, source, name))
    if suffix in (".jsonl", ".ndjson") or start == "{":
        rows = list(_parse_lines(text, name))
        if rows[0].fault is not None and start == "{":
            rows = _parse_documents(text, source, name) or rows
        if suffix != ".txt" or rows[0].fault is None:  # else a text that starts with "{"
            return Table(source, rows)
    if _is_header(text.lstrip().split("\n", 1)[0]):
        table = _parse_csv(text, ".csv", source, column)
        return Table(source, table.rows, (*table.notes, "its first line names the columns"))
    lines = enumerate(text.split("\n"), start=1)
    rows = [Row(f"line {n}", {name: line.strip()}) for n, line in lines if line.strip()]
    if known_column([str(rows[0].values[name]).strip('"')]) is None:
        return Table(source, rows)
    return Table(source, rows[1:], ("its first line is taken for the name of a column",))


def read_binary(path: Path, suffix: str, source: str) -> Table:
    """The rows of a Parquet or Arrow file."""
    import pyarrow
    from pyarrow import ipc, parquet

    try:
        if suffix == ".parquet":
            table = parquet.read_table(path)
        else:
            with open(path, "rb") as file:
                mark = file.read(6)
            reader = ipc.open_file if mark == b"ARROW1" else ipc.open_stream
            table = reader(pyarrow.OSFile(str(path))).read_all()
    except pyarrow.ArrowException as error:
        raise InputError(
            f"{source} is not a complete {suffix} file ({one_line(error):.120})."
            " Try: download or write it again"
        ) from error
    return Table(source, numbered(table.to_pylist()))


def numbered(values: list[dict[str, object]]) -> list[Row]:
    """Rows with their numbers as places."""
    return [Row(f"row {number}", value) for number, value in enumerate(values, start=1)]


# --- JSON ---


def _parse_json(text: str, source: str, column: str) -> list[Row]:
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return list(_parse_lines(text, column))
        raise InputError(
            f"{source}, line {error.lineno}: invalid JSON ({error.msg} at column {error.colno})."
            " Try: correct the line, or write the file again if it was truncated"
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deeply, a number of 5,000 digits
        raise InputError(
            f"{source}: this JSON cannot be parsed ({error}). Try: simplify it"
        ) from error
    return _rows_of(value, source, column)


def _parse_lines(text: str, column: str) -> Iterator[Row]:
    # Not splitlines(): a JSON string may hold U+2028, which does not end a row.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            yield _row(json.loads(line), place, column)
        except json.JSONDecodeError as error:
            detail = f"invalid JSON ({error.msg} at column {error.colno})"
            hint = "correct the line, or write the file again if it was truncated"
            yield Row(place, {}, Skipped("with invalid JSON", detail, hint))
        except (RecursionError, ValueError) as error:
            detail = f"this JSON cannot be parsed ({error})"
            yield Row(place, {}, Skipped("with invalid JSON", detail, "simplify it"))


def _parse_documents(text: str, source: str, column: str) -> list[Row]:
    """The rows of JSON documents over several lines each, or of a single one; [] for others."""
    decoder, documents, position = json.JSONDecoder(), list[object](), 0
    try:
        while rest := text[position:].lstrip():
            position = len(text) - len(rest)
            document, position = decoder.raw_decode(text, position)
            documents.append(document)
    except (ValueError, RecursionError):
        return []
    return _rows_of(documents[0] if len(documents) == 1 else documents, source, column)


def _decode_yaml(text: str, source: str) -> object:
    import yaml

    try:
        value: object = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(
            f"{source}: invalid YAML ({one_line(error):.120}). Try: save the prompts as .jsonl"
        ) from error
    return value


def _rows_of(value: object, source: str, column: str) -> list[Row]:
    """The rows of a JSON document: its list, the only list under a key, or columns."""
    if isinstance(value, dict):
        value = _list_in(value, source)
    if not isinstance(value, list):
        raise InputError(
            f"{source} must hold a list of prompts or objects, not {_kind(value)}."
            " Try: put the rows between [ and ]"
        )
    return [_row(item, f"row {number}", column) for number, item in enumerate(value, start=1)]


def _list_in(document: dict[str, object], source: str) -> list[object]:
    name = known_column(document)
    values = list(document.values())
    own = document.get(name) if name is not None else None
    talk = str(name).lower() in CONVERSATION_COLUMNS and _is_conversation(own)
    if talk or isinstance(own, str):
        return [document]  # a single row, whatever else it lists
    if name is not None and all(isinstance(v, list | dict) for v in values):  # as pandas writes it
        columns = {k: list(v.values()) if isinstance(v, dict) else v for k, v in document.items()}
        first = columns[name]
        objects = isinstance(first, list) and any(isinstance(cell, dict) for cell in first)
        lengths = {len(cells) for cells in columns.values() if isinstance(cells, list)}
        if len(lengths) == 1 and not objects:
            names, cells = columns.keys(), columns.values()
            return [dict(zip(names, row, strict=True)) for row in zip(*cells, strict=True)]
    if values and all(isinstance(v, dict) and known_column(v) is not None for v in values):
        return values  # {id: row}
    lists = {key: v for key, v in document.items() if isinstance(v, list) and v}
    if len(lists) > 1:  # such as the columns' types beside the rows
        lists = {k: v for k, v in lists.items() if k in ("rows", "data")} or lists
    if len(lists) == 1:
        return next(iter(lists.values()))
    found = f"several lists ({', '.join(map(repr, list(lists)[:6]))})" if lists else "no list"
    raise InputError(
        f"{source} must hold a list of prompts or objects; it is an object with {found}."
        " Try: one list of rows, between [ and ]"
    )


def _is_conversation(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value
    )


def _row(value: object, place: str, column: str) -> Row:
    if isinstance(value, str):
        return Row(place, {column: value})
    if isinstance(value, list) and value and _is_conversation(value):
        return Row(place, {CONVERSATION_COLUMNS[0]: value})
    if not isinstance(value, dict):
        detail = f"must be an object, not {_kind(value)}"
        return Row(place, {}, Skipped("not an object", detail, '{"prompt": "..."}'))
    for name in ("body", "params", "row"):  # requests of batches; a row of the hub's viewer
        inner = value.get(name)
        if isinstance(inner, Mapping) and known_column(inner) and not known_column(value):
            identifier = value.get("custom_id")
            value = {**inner, "id": identifier} if identifier is not None else dict(inner)
    return Row(place, {str(key): item for key, item in value.items()})


def _kind(value: object) -> str:
    """The JSON name of the type of `value`, with its article."""
    if value is None:
        return "null"
    names = {bool: "a boolean", dict: "an object", list: "a list", str: "a string"}
    return names.get(type(value), "a number")


# --- CSV ---


def _parse_csv(text: str, suffix: str, source: str, column: str | None) -> Table:
    first = re.match(r"sep=(.)\r?\n", text)  # written by spreadsheets
    separator = first[1] if first else "\t" if suffix == ".tsv" else _separator(text)
    body = "\n" * bool(first) + text[first.end() if first else 0 :]
    try:
        return _read_csv(body, separator, source, column)
    except InputError:
        if separator != "\t":
            raise
        return _read_csv(body, separator, source, column, quoted=False)


def _separator(text: str) -> str:
    """The separator that finds the column of the prompts in the header, or else most columns."""
    headers = {}
    for separator in _SEPARATORS:
        try:
            headers[separator] = next(csv.reader(io.StringIO(text), delimiter=separator), [])
        except csv.Error:
            continue
    known = [s for s, names in headers.items() if known_column(names) is not None]
    if known or not headers:
        return known[0] if known else ","
    return max(headers, key=lambda separator: len(headers[separator]))


def _read_csv(
    text: str, separator: str, source: str, column: str | None, *, quoted: bool = True
) -> Table:
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=True,
    )
    rows: list[Row] = []
    notes: tuple[str, ...] = ()
    try:
        header = _unique([name.strip() for name in next(filter(None, reader), [])])
        if column is None and len(header) == 1 and _is_prose(header[0]):
            notes = ("its first line is a prompt, since it names no column",)
            rows.append(Row(f"line {reader.line_num}", {"prompt": header[0]}))
            header = ["prompt"]
        for fields in reader:
            if not fields:  # an empty line
                continue
            place = f"line {reader.line_num}"
            while len(fields) > len(header) and not fields[-1].strip():
                fields.pop()
            if len(fields) > len(header):
                detail = f"{len(fields)} fields, but the header has {len(header)}"
                hint = "put quotes around fields with commas, or save the prompts as .jsonl"
                rows.append(Row(place, {}, Skipped("with too many fields", detail, hint)))
            else:
                rows.append(Row(place, dict(zip(header, fields, strict=False))))
    except csv.Error as error:
        raise InputError(
            f"{source}, line {reader.line_num}: invalid CSV ({error})."
            " Try: check the quotes, or save the prompts as .jsonl"
        ) from error
    return Table(source, rows, notes)


def _unique(names: list[str]) -> list[str]:
    """The names, with a number behind those that repeat an earlier one, as in pandas."""
    return [
        f"{name}.{names[:position].count(name)}" if name in names[:position] else name
        for position, name in enumerate(names)
    ]


def _is_header(line: str) -> bool:
    """Whether the first line of a text names columns, of which one is the prompts'."""
    names = re.split(r"[,;\t]", line.strip().replace('"', ""))
    short = all(re.fullmatch(r"[\w.-]{0,30}", name.strip()) for name in names)
    return short and len(names) > 1 and known_column(names) is not None


def _is_prose(name: str) -> bool:
    """Whether the only name of a header is a sentence, so that the file has no header."""
    return known_column([name]) is None and len(name.split()) >= 3
