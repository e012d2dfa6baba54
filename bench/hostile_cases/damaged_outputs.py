"""Outputs of a run that were damaged, emptied, deleted or replaced: whoever reads them stops."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from bench.hostile_cases.case import Case, stops
from bench.hostile_cases.room import (
    DAMAGES,
    RUN_COMMANDS,
    Edit,
    Room,
    cut,
    delete,
    empty,
    garbage,
    replaced,
)

KIND = "damaged outputs"
STAGES = ("run", "direction", "tokens", "train")
EXPORTS = ("export adapter", "export merged", "export gguf")
# {file of the run: commands that read it}
READERS: dict[str, tuple[str, ...]] = {
    "direction/direction.safetensors": (
        *("run", "direction", "tokens", "train"),
        *("eval --teacher", "generate --teacher", "export teacher"),
    ),
    "direction/direction.json": (
        *("run", "direction", "tokens", "train", "report"),
        *("eval --teacher", "generate --teacher", "export teacher"),
    ),
    "tokens/safety_tokens.json": ("run", "tokens", "train", "report"),
    "adapter/adapter_model.safetensors": ("run", "train", "eval", "generate", "chat", *EXPORTS),
    "adapter/adapter_config.json": ("run", "train", "eval", "generate", "chat", *EXPORTS),
    "train/metrics.jsonl": ("run", "train", "report"),
    "eval/base.json": ("run", "show", "report", "compare"),
    "eval/teacher.json": ("run", "show", "report", "compare"),
    "eval/aligned.json": ("run", "show", "report", "compare"),
    "eval/samples/base-harmful.jsonl": ("run", "report", "compare"),
    "eval/samples/aligned-harmful.jsonl": ("run", "report", "compare"),
    "report/measurements.json": ("run",),
}
# Files that every command reads first.
RECORDS = {
    "manifest.json": ("run", "eval", "generate", "chat", "report", "compare", *EXPORTS),
    "config.yaml": ("run", "eval", "generate", "chat", "report", *EXPORTS),
}
COMMANDS = {**RUN_COMMANDS, "show": ["eval", "run"]}
OTHER = {  # right by their form, and not what the run wrote
    "eval/base.json": '{"model": "base", "benchmarks": []}',
    "eval/aligned.json": '{"model": "aligned", "benchmarks": {}}',
    "eval/teacher.json": "[]",
    "eval/samples/aligned-harmful.jsonl": "",
    "tokens/safety_tokens.json": '{"tokens": [{"id": 5, "text": "a"}]}',
    "direction/direction.json": (
        '{"layer": 0, "coefficient": 1.0, "method": "refuse-comply", "position": null}'
    ),
    "train/metrics.jsonl": '{"step": 1, "loss": 0.0}\n',
}
BAD_RECORDS: dict[str, dict[str, Edit]] = {
    "manifest.json": {
        "cut": cut,
        "empty": empty,
        "bytes": garbage,
        "a list": replaced("[]"),
        "of another schema": replaced('{"schema": 99, "stages": {}}'),
        "stages are words": replaced('{"schema": 1, "stages": "done"}'),
        "nested 100,000 deep": replaced("[" * 100_000 + "]" * 100_000),
    },
    "config.yaml": {
        "deleted": delete,
        "bytes": garbage,
        "a list": replaced("- model\n- train\n"),
        "an unknown key": replaced("model:\n  idd: x\n"),
        "a wrong value": replaced("train:\n  max_steps: many\n"),
        "nested 100,000 deep": replaced("[" * 100_000 + "]" * 100_000),
        "a Python object": replaced("model: !!python/object/apply:os.getcwd []\n"),
    },
}


def _damaged(file: str, edit: Edit, words: list[str], room: Room) -> None:
    edit(room / "run" / file)
    stops(room, *words, names=file.rpartition("/")[2].replace(".", r"\."), stdin=b"Hello\n")


def cases() -> Iterator[Case]:
    """Every damage of every file, at each command that reads it."""
    for file, readers in READERS.items():
        damages = dict(DAMAGES)
        if file in OTHER:
            damages["replaced"] = replaced(OTHER[file])
        for reader in readers:
            for damage, edit in damages.items():
                act = partial(_damaged, file, edit, COMMANDS[reader])
                yield Case(KIND, f"{file} / {damage} / {reader}", act)
    for file, faults in BAD_RECORDS.items():
        for fault, edit in faults.items():
            for reader in RECORDS[file]:
                act = partial(_damaged, file, edit, COMMANDS[reader])
                yield Case(KIND, f"{file} / {fault} / {reader}", act)
