"""Rows that are more than one text, and rows that are no prompt: joined, or counted and said."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.hostile_cases.case import Case, demand, stops, works
from bench.hostile_cases.formats import ASK, texts
from bench.hostile_cases.room import Room, rows_of

KIND = "prompt rows"
Rows = list[dict[str, Any]]


def _json(path: Path, rows: Rows) -> None:
    path.write_text(json.dumps(rows), "utf-8")


def _lines(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _csv(path: Path, rows: Rows) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _parquet(path: Path, rows: Rows) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


FILES: dict[str, tuple[str, Callable[[Path, Rows], None]]] = {
    "JSON": ("rows.json", _json),
    "JSONL": ("rows.jsonl", _lines),
    "CSV": ("rows.csv", _csv),
    "parquet": ("rows.parquet", _parquet),
}
FLAT = tuple(FILES)
NESTED = ("JSON", "JSONL", "parquet")
LOOSE = ("JSON", "JSONL")  # rows of different types, which a table does not hold


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALLED = [
    _user("What is the weather?"),
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    {"role": "assistant", "content": "Sunny."},
]
# {name: (a row of a text and its number, parts that the prompt must hold, formats)}
JOINED: dict[str, tuple[Callable[[str, int], dict[str, Any]], tuple[str, ...], tuple[str, ...]]] = {
    "Alpaca's input": (
        lambda text, n: {"instruction": "Translate it.", "input": text, "output": "x"},
        ("Translate it.", "TEXT"),
        FLAT,
    ),
    "HarmBench's ContextString": (
        lambda text, n: {"Behavior": "Sum it up.", "ContextString": text, "Tags": "context"},
        ("Sum it up.", "TEXT"),
        FLAT,
    ),
    "a context": (
        lambda text, n: {"question": "Where is it?", "context": text},
        ("Where is it?", "TEXT"),
        FLAT,
    ),
    "choices": (
        lambda text, n: {"question": text, "choices": [f"a{n}", f"b{n}"], "answer": 0},
        ("TEXT", "aN", "bN"),
        NESTED,
    ),
    "a system message": (
        lambda text, n: {"system": f"Be brief, {n}.", "prompt": text},
        ("Be brief, N.", "TEXT"),
        FLAT,
    ),
    "a history": (
        lambda text, n: {"instruction": text, "input": "", "history": [[f"Hi {n}", "Hello!"]]},
        ("Hi N", "Hello!", "TEXT"),
        NESTED,
    ),
    "earlier turns": (
        lambda text, n: {
            "messages": [_user(f"Hi {n}"), {"role": "assistant", "content": "Ho"}, _user(text)]
        },
        ("Hi N", "Ho", "TEXT"),
        NESTED,
    ),
    "a system turn": (
        lambda text, n: {
            "messages": [{"role": "system", "content": f"Be brief, {n}."}, _user(text)]
        },
        ("Be brief, N.", "TEXT"),
        NESTED,
    ),
    "two texts of a user": (
        lambda text, n: {"messages": [_user(f"Hi {n}"), _user(text)]},
        ("Hi N", "TEXT"),
        NESTED,
    ),
    "answers and tools after a request": (
        lambda text, n: {"messages": [_user(text), *CALLED[1:]]},
        ("TEXT",),
        ("JSON", "JSONL"),
    ),
    "a conversation beside a prompt": (
        lambda text, n: {
            "prompt": text,
            "messages": [_user(f"Hi {n}"), {"role": "assistant", "content": "Ho"}, _user(text)],
        },
        ("TEXT",),
        NESTED,
    ),
}
ZERO_WIDTH = "\u200b\u200d\ufeff"
# Rows that are no prompt: {name: (row, formats)}.
NO_PROMPT: dict[str, tuple[Any, tuple[str, ...]]] = {
    "an empty text": ({"prompt": ""}, FLAT),
    "spaces": ({"prompt": " \t "}, FLAT),
    "zero-width characters": ({"prompt": ZERO_WIDTH}, FLAT),
    "NaN": ({"prompt": "NaN"}, FLAT),
    "nan": ({"prompt": "nan"}, FLAT),
    "null": ({"prompt": None}, ("JSON", "JSONL", "parquet")),
    "no text": ({"other": "x"}, LOOSE),
    "a number": ({"prompt": 7}, LOOSE),
    "true": ({"prompt": True}, LOOSE),
    "an object": ({"prompt": {"a": 1}}, LOOSE),
    "an empty list": ({"prompt": []}, LOOSE),
    "a list of numbers": ({"prompt": [1, 2]}, LOOSE),
    "half a character": ({"prompt": "a\ud83d"}, LOOSE),
    "a conversation without a user": ({"prompt": [{"role": "system", "content": "x"}]}, LOOSE),
    "an unknown role": ({"prompt": [{"role": "narrator", "content": "x"}]}, LOOSE),
    "a picture": (
        {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
        LOOSE,
    ),
    "tools before a request": ({"prompt": [*CALLED, _user("And now?")]}, LOOSE),
    "a row that is null": (None, LOOSE),
    "a row that is a number": (7, LOOSE),
}
WHOLE = ("a picture", "tools before a request")  # rows without a fault that hold no prompt
LABELS = {"XSTest's labels": ("label", "safe", "unsafe"), "is_safe": ("is_safe", "true", "false")}


def _joined(make: Any, parts: tuple[str, ...], form: str, room: Room) -> None:
    from safesteer.prompts import load_prompts

    file, write = FILES[form]
    given = texts(10)
    write(room / file, [make(text, number) for number, text in enumerate(given)])
    works(room, "generate", "model", "--prompts", file, *ASK, may_write="^answers")
    found = load_prompts(room / file)
    demand(len(found) == len(given), f"{len(found)} prompts of {len(given)} rows", silent=True)
    for number, (prompt, text) in enumerate(zip(found, given, strict=True)):
        whole = "\n".join(message["content"] for message in prompt.messages)
        for part in parts:
            part = part.replace("TEXT", text).replace("N", str(number)) if part != "NaN" else part
            demand(part in whole, f"{part!r} is lost: {whole!r:.200}", silent=True)


def _skipped(row: Any, form: str, room: Room) -> None:
    """One bad row among 40: skipped, counted and said."""
    file, write = FILES[form]
    given = texts(40)
    rows: list[Any] = [{"prompt": text} for text in given]
    rows.insert(7, row)
    write(room / file, rows)
    words = ("generate", "model", "--prompts", file, *ASK)
    works(
        room,
        *words,
        says=r"\b41\b.*\b40\b|\b40\b.*\b41\b|\b1\b[^.]*skipped|skipped[^.]*\b1\b",
        may_write="^answers",
    )
    found = [answer["prompt"] for answer in rows_of(room / "answers.jsonl")]
    demand(found == given, f"{len(found)} prompts of 40", silent=True)


def _refused(row: Any, form: str, room: Room) -> None:
    """A fifth of the rows: the file is refused, with the place of the first."""
    file, write = FILES[form]
    rows: list[Any] = [{"prompt": text} for text in texts(20)]
    for place in (3, 6, 9, 12):
        rows.insert(place, row)
    write(room / file, rows)
    words = ("generate", "model", "--prompts", file, *ASK)
    stops(room, *words, names=file.replace(".", r"\."))


def _labeled(column: str, safe: str, unsafe: str, form: str, room: Room) -> None:
    """Rows that are labeled safe are no harmful prompts."""
    file, write = FILES[form]
    given = texts(40)
    labels = [safe, unsafe] * 20
    write(
        room / file,
        [{"prompt": text, column: label} for text, label in zip(given, labels, strict=True)],
    )
    words = ("direction", "model", "-c", "small.yaml", "-o", "new", f"--harmful={file}")
    works(room, *words, says=rf"\b20\b.*({column}|safe)|({column}|safe).*\b20\b", may_write="^new/")


def _repeated(form: str, room: Room) -> None:
    """Prompts that come twice count once in a set, and that is said."""
    file, write = FILES[form]
    given = texts(20)
    write(room / file, [{"prompt": text} for text in [*given, *given[:5]]])
    words = ("direction", "model", "-c", "small.yaml", "-o", "new", f"--harmful={file}")
    works(
        room, *words, says=r"\b25\b.*\b20\b|\b5\b[^.]*(repeat|duplicate|twice)", may_write="^new/"
    )


def _split(column: str, value: str, form: str, room: Room) -> None:
    """A split that is none, in one row."""
    file, write = FILES[form]
    names = ["train"] * 12 + ["validation"] * 4 + ["test"] * 3 + [value]
    rows = [{"prompt": text, column: name} for text, name in zip(texts(20), names, strict=True)]
    write(room / file, rows)
    words = ("direction", "model", "-c", "small.yaml", "-o", "new", f"--harmful={file}")
    stops(room, *words, names=f"split|{value}")


def cases() -> Iterator[Case]:
    """Every row that has to be joined, skipped or refused, in every format that holds it."""
    for name, (make, parts, forms) in JOINED.items():
        for form in forms:
            yield Case(KIND, f"right: {name} / {form}", partial(_joined, make, parts, form))
    for name, (row, forms) in NO_PROMPT.items():
        for form in forms:
            yield Case(KIND, f"{name}, once / {form}", partial(_skipped, row, form))
            if name not in WHOLE:  # which are counted and skipped, however many
                yield Case(KIND, f"{name}, often / {form}", partial(_refused, row, form))
    for form in FILES:
        for name, labels in LABELS.items():
            yield Case(KIND, f"{name} / {form}", partial(_labeled, *labels, form))
        yield Case(KIND, f"repeated prompts / {form}", partial(_repeated, form))
        yield Case(KIND, f"an unknown split / {form}", partial(_split, "split", "tset", form))
