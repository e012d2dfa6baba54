"""Prompt files of the formats that people have: whole, with a bad cell, cut, empty, missing."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.hostile_cases.case import (
    Case,
    check_error_line,
    command,
    demand,
    stops,
    works,
)
from bench.hostile_cases.room import Room, cut, empty, rows_of

KIND = "prompt formats"
Write = Callable[[Path, Sequence[str]], None]


def texts(count: int) -> list[str]:
    """Prompts that are no near-duplicates of each other, with a comma and a quotation mark."""
    things = ("lock", "key", "door", "note", "bird", "cake", "moon", "king", "law", "color")
    return [
        f'How do I open "{thing}" {number}, please?'
        for number in range(1 + count // len(things))
        for thing in things
    ][:count]


def _lines(make: Callable[[str], Any]) -> Write:
    return lambda path, given: path.write_text(
        "".join(json.dumps(make(text)) + "\n" for text in given), "utf-8"
    )


def _json(make: Callable[[str], Any], key: str = "") -> Write:
    def write(path: Path, given: Sequence[str]) -> None:
        rows: Any = [make(text) for text in given]
        path.write_text(json.dumps({"version": 1, key: rows} if key else rows), "utf-8")

    return write


def _table(separator: str = ",", encoding: str = "utf-8", column: str = "prompt") -> Write:
    def write(path: Path, given: Sequence[str]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=separator)
        writer.writerow([column, "label"])
        writer.writerows([prompt, "1"] for prompt in given)
        path.write_bytes(text.getvalue().encode(encoding))

    return write


def _zipped(write: Write) -> Write:
    def zip_it(path: Path, given: Sequence[str]) -> None:
        write(path, given)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return zip_it


def _parquet(path: Path, given: Sequence[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"prompt": list(given), "label": [1] * len(given)})
    pyarrow.parquet.write_table(table, path)


def _saved(path: Path, given: Sequence[str]) -> None:
    import datasets

    datasets.Dataset.from_list([{"prompt": text} for text in given]).save_to_disk(str(path))


def _plain(text: str) -> dict[str, Any]:
    return {"prompt": text}


def _chat(content: Callable[[str], Any], key: str = "messages", role: str = "user") -> Any:
    def make(text: str) -> dict[str, Any]:
        answer = {"role": "assistant", "content": "No."}
        return {key: [{"role": role, "content": content(text)}, answer]}

    return make


def _sharegpt(text: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "No."}]}


def _batch(text: str) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return {"custom_id": text, "method": "POST", "url": "/v1/chat/completions", "body": body}


def _preferred(text: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": text}],
        "chosen": [{"role": "assistant", "content": "No."}],
        "rejected": [{"role": "assistant", "content": "Yes."}],
    }


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": part} for part in text.split(" ", 3)]


def _same(text: str) -> Any:
    return text


# {name: (file name, writer)}
FORMATS: dict[str, tuple[str, Write]] = {
    "txt": ("p.txt", lambda path, given: path.write_text("\n".join(given) + "\n", "utf-8")),
    "txt without its extension": (
        "given",
        lambda path, given: path.write_text("\n".join(given) + "\n", "utf-8"),
    ),
    "CSV": ("p.csv", _table()),
    "CSV with a byte-order mark": ("p.csv", _table(encoding="utf-8-sig")),
    "CSV in UTF-16": ("p.csv", _table(encoding="utf-16")),
    "CSV with semicolons": ("p.csv", _table(";")),
    "CSV with semicolons and a byte-order mark": ("p.csv", _table(";", "utf-8-sig")),
    "CSV with a capital column": ("p.csv", _table(column="Prompt")),
    "CSV, gzip": ("p.csv.gz", _zipped(_table())),
    "TSV": ("p.tsv", _table("\t")),
    "JSON, strings": ("p.json", _json(_same)),
    "JSON, objects": ("p.json", _json(_plain)),
    "JSON, under data": ("p.json", _json(_plain, "data")),
    "JSON, under rows": ("p.json", _json(_plain, "rows")),
    "JSON, strings under prompts": ("p.json", _json(_same, "prompts")),
    "JSON, gzip": ("p.json.gz", _zipped(_json(_plain))),
    "JSON with lines in it": ("p.json", _lines(_plain)),
    "YAML": (
        "p.yaml",
        lambda path, given: path.write_text(
            "".join(f"- {json.dumps(_plain(text))}\n" for text in given), "utf-8"
        ),
    ),
    "JSONL": ("p.jsonl", _lines(_plain)),
    "JSONL, strings": ("p.jsonl", _lines(_same)),
    "JSONL, gzip": ("p.jsonl.gz", _zipped(_lines(_plain))),
    "NDJSON": ("p.ndjson", _lines(_plain)),
    "column text": ("p.json", _json(lambda text: {"text": text, "label": 1})),
    "column query": ("p.json", _json(lambda text: {"query": text, "response": ""})),
    "parquet": ("p.parquet", _parquet),
    "a saved data set": ("saved", _saved),
    "ShareGPT": ("p.json", _json(_sharegpt)),
    "ShareGPT lines": ("p.jsonl", _lines(_sharegpt)),
    "OpenAI chat": ("p.jsonl", _lines(_chat(_same))),
    "OpenAI chat with parts": ("p.jsonl", _lines(_chat(_parts))),
    "OpenAI roles in capitals": ("p.jsonl", _lines(_chat(_same, role="User"))),
    "OpenAI batch": ("p.jsonl", _lines(_batch)),
    "conversations of role and content": ("p.json", _json(_chat(_same, "conversations"))),
    "preferences": ("p.json", _json(_preferred)),
}
TABLES = ("CSV", "TSV", "JSON, objects", "JSONL", "NDJSON", "parquet", "column text", "JSONL, gzip")
# A cut that leaves no sign, as of a text file, is no fault.
SHOWS_A_CUT = [
    name
    for name in FORMATS
    if "txt" not in name and name != "a saved data set" and not name.startswith(("CSV", "TSV"))
] + ["CSV, gzip"]
FOREIGN = {
    "a workbook": ("p.xlsx", b"PK\x03\x04" + bytes(100)),
    "a pickle": ("p.pkl", b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00]\x94."),
    "a PDF": ("p.pdf", b"%PDF-1.7\n"),
    "a zip file": ("p.zip", b"PK\x03\x04" + bytes(100)),
    "text called parquet": ("p.parquet", b"Hello?\n"),
    "text called gzip": ("p.jsonl.gz", b'{"prompt": "Hello?"}\n'),
    "bytes called JSONL": ("p.jsonl", bytes(range(256))),
    "bytes called CSV": ("p.csv", bytes(range(256))),
    "bytes called txt": ("p.txt", b"\xff\xfe\x00\xd8" + bytes(range(128, 256))),
    "a gzip file that grows": ("p.txt.gz", gzip.compress(bytes(1 << 28), 9)),
    "a JSON object without a list": ("p.json", b'{"answer": "Hello?"}'),
    "a JSON object with two lists": ("p.json", b'{"a": ["Hello?"], "b": ["You?"]}'),
    "a JSON number": ("p.json", b"7"),
    "JSON nested 100,000 deep": ("p.json", b"[" * 100_000 + b"]" * 100_000),
}
ASK = ("--output", "answers.jsonl", "--max-new-tokens", "1")


def _write(file: str, write: Write, count: int, room: Room) -> list[str]:
    given = texts(count)
    write(room / file, given)
    return given


def _answered(room: Room) -> list[str]:
    """The prompts that were answered, with parts joined by spaces."""
    return [" ".join(row["prompt"].split()) for row in rows_of(room / "answers.jsonl")]


def _generate(file: str, write: Write, room: Room) -> None:
    given = _write(file, write, 12, room)
    works(room, "generate", "model", "--prompts", file, *ASK, may_write="^answers")
    demand(_answered(room) == given, f"other prompts: {_answered(room)[:2]}", silent=True)


def _as_set(file: str, write: Write, room: Room) -> None:
    _write(file, write, 20, room)
    words = ("direction", "model", "-c", "small.yaml", "-o", "new", f"--harmful={file}")
    works(room, *words, says=r"\b20\b", may_write="^new/")


def _damaged(file: str, write: Write, damage: Any, room: Room) -> None:
    _write(file, write, 30, room)
    damage(room / file)
    stops(room, "generate", "model", "--prompts", file, *ASK, names=file.replace(".", r"\."))


def _cut(file: str, write: Write, room: Room) -> None:
    """Refused, or half a last line is skipped, counted and said."""
    _write(file, write, 60, room)
    cut(room / file)
    outcome = command(room, "generate", "model", "--prompts", file, *ASK)
    if outcome.code:
        check_error_line(outcome, file.replace(".", r"\."))
        return
    demand("skipped 1" in outcome.said, f"nothing said: {outcome.said!r}", silent=True)
    demand(16 <= len(_answered(room)) <= 30, f"{len(_answered(room))} prompts of half a file")


def _no_rows(file: str, write: Write, room: Room) -> None:
    write(room / file, [])
    stops(room, "generate", "model", "--prompts", file, *ASK, names=file.replace(".", r"\."))


def _no_such_column(file: str, write: Write, room: Room) -> None:
    _write(file, write, 12, room)
    words = ("generate", "model", "--prompts", file, "--column", "promptt", *ASK)
    stops(room, *words, names="promptt")


def _missing(file: str, write: Write, room: Room) -> None:
    _write(file, write, 12, room)
    words = ("generate", "model", "--prompts", f"x{file}", *ASK)
    stops(room, *words, names=f"x{file}".replace(".", r"\."))


def _foreign(file: str, data: bytes, room: Room) -> None:
    (room / file).write_bytes(data)
    names = file.replace(".", r"\.")
    stops(room, "generate", "model", "--prompts", file, *ASK, names=names, may_write="^cache")


def cases() -> Iterator[Case]:
    """Every format whole, as a file to answer and as a prompt set; and every fault of a file."""
    for name, given in FORMATS.items():
        yield Case(KIND, f"right: {name} / generate", partial(_generate, *given))
        yield Case(KIND, f"right: {name} / direction", partial(_as_set, *given))
        yield Case(KIND, f"{name} / no rows", partial(_no_rows, *given))
        yield Case(KIND, f"{name} / missing", partial(_missing, *given))
        if given[0] != "saved":
            yield Case(KIND, f"{name} / empty", partial(_damaged, *given, empty))
    for name in SHOWS_A_CUT:
        yield Case(KIND, f"{name} / cut", partial(_cut, *FORMATS[name]))
    for name in TABLES:
        yield Case(KIND, f"{name} / no such column", partial(_no_such_column, *FORMATS[name]))
    for name, (file, data) in FOREIGN.items():
        yield Case(KIND, f"{name} is refused", partial(_foreign, file, data))
