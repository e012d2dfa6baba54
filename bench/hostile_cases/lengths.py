"""Prompts longer than a model reads, numbers larger than a type holds, thoughts that never end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

from bench.hostile_cases.case import Case, demand, stops, works
from bench.hostile_cases.room import (
    MODEL_COMMANDS,
    Room,
    json_edited,
    product,
    rows_of,
    template_of,
    tensors_edited,
    words,
)
from bench.hostile_cases.templates import ASSISTANT, CONTENT, turns

KIND = "lengths and numbers"
LONG = "Name every color of the rainbow and then some. " * 200
SETS = ("harmful", "harmless", "borderline")
STAGES = {
    "direction": MODEL_COMMANDS["direction"],
    "eval": MODEL_COMMANDS["eval"],
    "run": ["run", "MODEL", "-c", "small.yaml", "-o", "new"],
}


def _one_long(part: str, name: str, command: list[str], room: Room) -> None:
    """One prompt of a set does not fit: skipped, counted and said."""
    rows = rows_of(room / f"{name}.jsonl")
    rows.append({"prompt": LONG, "split": part})
    # More of the split, so that the sets stay large enough without it.
    (room / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    limit = "--limit=9"
    given = [*words(command), limit] if command[0] != "direction" else words(command)
    works(room, *given, says="long|position", may_write="^new/")


def _long_to_generate(room: Room) -> None:
    rows = rows_of(room / "harmful.jsonl")
    (room / "long.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"prompt": LONG}])), "utf-8")
    asked = ("--prompts", "long.jsonl", "--output", "answers.jsonl", "--max-new-tokens", "2")
    works(room, "generate", "model", *asked, says="long|position", may_write="^answers")
    found = [row["prompt"] for row in rows_of(room / "answers.jsonl")]
    demand(
        found[: len(rows)] == [row["prompt"] for row in rows], "prompts are missing", silent=True
    )


def _all_long(command: list[str], room: Room) -> None:
    rows = [
        {**row, "prompt": f"{LONG} {n}"} for n, row in enumerate(rows_of(room / "harmful.jsonl"))
    ]
    (room / "harmful.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    stops(room, *words(command), names="long|position|token", may_write="^new/")


def _long_chat(room: Room) -> None:
    outcome = works(room, "chat", "model", stdin=f"{LONG}\nHello\n".encode(), says="long|position")
    demand(outcome.code == 0, outcome.err)


def _overflow(dtype: str, command: list[str], room: Room) -> None:
    """Weights that float32 holds and whose activations float16 does not."""
    tensors_edited(
        lambda t: {n: v * 3000 if "mlp" in n or "embed" in n else v for n, v in t.items()}
    )(room / "model")
    stops(
        room, *words(command), f"--dtype={dtype}", names="float16.*bfloat16", may_write="^(new/|a)"
    )


def _too_large(room: Room) -> None:
    """A weight that float16 does not hold."""
    tensors_edited(lambda t: {n: v + 1e5 if "up_proj" in n else v for n, v in t.items()})(
        room / "model"
    )
    stops(room, *words(MODEL_COMMANDS["direction"]), "--dtype=float16", names="float16")


def _few_positions(count: int, command: list[str], room: Room) -> None:
    json_edited("config.json", max_position_embeddings=count)(room / "model")
    stops(room, *words(command), names="position|long|exceed", may_write="^new/")


def _unknown_end(opening: str, command: list[str], room: Room) -> None:
    """A template that opens a block of thoughts and names its end nowhere."""
    open_ = ASSISTANT.replace("assistant\n", f"assistant\n{opening}\n")
    template_of(turns(CONTENT).replace(ASSISTANT, open_))(room / "model")
    works(room, *words(command), says="think", may_write=r"^(new/|answers)")


def cases() -> Iterator[Case]:
    """Every set and stage; every type."""
    parts = {
        "a training prompt": "train",
        "a validation prompt": "validation",
        "a test prompt": "test",
    }
    names = {f"{name} set": name for name in SETS}
    for case, (part, name, command) in product(parts, names, STAGES):
        stage = case.rpartition("/ ")[2]
        reads = {
            "direction": ("train", "validation"),
            "eval": ("test",),
            "run": tuple(parts.values()),
        }
        borderline_reads = (
            name != "borderline" or part == "test" or (stage, part) == ("run", "train")
        )
        if part in reads[stage] and borderline_reads:
            yield Case(KIND, f"too long: {case}", partial(_one_long, part, name, command))
    yield Case(KIND, "too long: one of a file / generate", _long_to_generate)
    for case, command in STAGES.items():
        yield Case(KIND, f"too long: all / {case}", partial(_all_long, command))
    yield Case(KIND, "too long: all / generate", partial(_all_long, MODEL_COMMANDS["generate"]))
    yield Case(KIND, "too long: a turn / chat", _long_chat)
    for case, command in {**STAGES, "generate": MODEL_COMMANDS["generate"]}.items():
        yield Case(KIND, f"float16 overflows / {case}", partial(_overflow, "float16", command))
        yield Case(KIND, f"a model of 8 positions / {case}", partial(_few_positions, 8, command))
    yield Case(KIND, "a weight above float16", _too_large)
    openings = {"<think>": "<think>", "[THINK]": "[THINK]", "<thought>": "<thought>"}
    commands = {name: MODEL_COMMANDS[name] for name in ("doctor", "direction", "generate")}
    for case, (opening, command) in product(openings, commands):
        yield Case(KIND, f"no end of {case}", partial(_unknown_end, opening, command))
