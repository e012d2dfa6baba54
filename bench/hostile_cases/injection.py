"""Text from models, templates, paths and files that a terminal, a page or a card must not obey."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import yaml

from bench.hostile_cases.case import Case, check_clean, check_error_line, command, demand
from bench.hostile_cases.room import (
    SHORT,
    Room,
    json_edited,
    product,
    template_of,
    tensors_edited,
)

KIND = "injection"
MARKS = {
    "a color": "\x1b[31mred\x1b[0m",
    "a title": "\x1b]0;title\x07",
    "a link": "\x1b]8;;http://127.0.0.1\x1b\\x\x1b]8;;\x1b\\",
    "a carriage return": "whole\rhalf",
    "a backspace": "ab\x08\x08cd",
    "a one-byte escape": "\x9b31mred",
    "right to left": "ab\u202ecd\u2066ef",
    "markup of rich": "[bold red]x[/bold red] [/] [link=http://x]y[/link]",
    "a clear screen": "\x1b[2J\x1b[H",
}
Place = Callable[[Room, str], list[str]]
ASK = ("--output", "answers.jsonl", *SHORT)


def in_the_models_name(room: Room, mark: str) -> list[str]:
    """A folder of a model."""
    name = f"m{mark}".replace("/", "_")
    (room / "model").rename(room / name)
    return ["doctor", name]


def in_a_missing_models_name(room: Room, mark: str) -> list[str]:
    """A model that is not there."""
    return ["generate", f"./m{mark}", "--prompts", "harmful.jsonl", *ASK]


def in_the_runs_name(room: Room, mark: str) -> list[str]:
    """A folder of a new run."""
    name = f"r{mark}".replace("/", "_")
    return ["direction", "model", "-c", "small.yaml", "-o", name]


def in_the_prompts_name(room: Room, mark: str) -> list[str]:
    """A prompt file that is not there."""
    return ["generate", "model", "--prompts", f"p{mark}.jsonl", *ASK]


def in_a_column(room: Room, mark: str) -> list[str]:
    """A column of a prompt file, listed where another is missing."""
    (room / "p.jsonl").write_text(json.dumps({f"x{mark}": "y", "z": "y"}) + "\n", "utf-8")
    return ["generate", "model", "--prompts", "p.jsonl", *ASK]


def in_a_role(room: Room, mark: str) -> list[str]:
    """A role that is none."""
    row = {"messages": [{"role": f"user{mark}", "content": "Hello?"}]}
    (room / "p.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    return ["generate", "model", "--prompts", "p.jsonl", *ASK]


def in_a_split(room: Room, mark: str) -> list[str]:
    """A split that is none."""
    rows = [{"prompt": f"Question {n}?", "split": f"tr{mark}"} for n in range(8)]
    (room / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return ["direction", "model", "-c", "small.yaml", "-o", "new", "--harmful=p.jsonl"]


def in_prompts(room: Room, mark: str) -> list[str]:
    """Prompts themselves, which are shown where the user asks."""
    rows = [{"prompt": f"Question {mark} {n}?"} for n in range(12)]
    (room / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return ["eval", "model", "-c", "small.yaml", "--harmful=p.jsonl", "--show-completions"]


def in_a_template(room: Room, mark: str) -> list[str]:
    """The error of a template."""
    template_of("{{ raise_exception(" + json.dumps(f"no {mark}") + ") }}")(room / "model")
    return ["doctor", "model"]


def in_the_architecture(room: Room, mark: str) -> list[str]:
    """The type of a model."""
    json_edited("config.json", model_type=f"llama{mark}")(room / "model")
    return ["doctor", "model"]


def in_a_tensors_name(room: Room, mark: str) -> list[str]:
    """A tensor that the model lacks."""
    import torch

    name = f"model.layers.9.{mark}.weight"
    tensors_edited(lambda t: {**t, name: torch.ones(2)})(room / "model")
    return ["doctor", "model"]


def in_an_adapters_base(room: Room, mark: str) -> list[str]:
    """The base that an adapter names."""
    json_edited("adapter_config.json", base_model_name_or_path=f"/x{mark}")(room / "adapter")
    return ["doctor", "adapter"]


def in_a_setting(room: Room, mark: str) -> list[str]:
    """A key, and the value of one."""
    return ["direction", "model", "-c", "small.yaml", "-o", "new", f"--set=train.{mark}=1"]


def in_a_value(room: Room, mark: str) -> list[str]:
    """A value of a setting."""
    return ["direction", "model", "-c", "small.yaml", "-o", "new", f"--method={mark}"]


def in_a_config_file(room: Room, mark: str) -> list[str]:
    """An unknown key of a file."""
    (room / "x.yaml").write_text(yaml.safe_dump({"train": {f"x{mark}": 1}}), "utf-8")
    return ["direction", "model", "-c", "x.yaml", "-o", "new"]


def in_a_benchmark(room: Room, mark: str) -> list[str]:
    """A benchmark that is none."""
    return ["eval", "model", "-c", "small.yaml", f"--benchmarks=x{mark}"]


def in_a_judge(room: Room, mark: str) -> list[str]:
    """A judge that is none."""
    return ["eval", "model", "-c", "small.yaml", f"--judges=x{mark}"]


def in_a_command(room: Room, mark: str) -> list[str]:
    """A command that is none."""
    return [f"run{mark}"]


def in_a_compared_file(room: Room, mark: str) -> list[str]:
    """The name of a benchmark in a file to compare."""
    found = json.loads((room / "run" / "eval" / "aligned.json").read_text("utf-8"))
    found["benchmarks"] = {f"{key}{mark}": value for key, value in found["benchmarks"].items()}
    found["model"] = f"model{mark}"
    (room / "x.json").write_text(json.dumps(found), "utf-8")
    return ["compare", "run", "x.json"]


PLACES: dict[str, Place] = {
    name.replace("_", " ").replace("models", "model's"): place
    for name, place in list(globals().items())
    if name.startswith("in_")
}


def _shown(place: Place, mark: str, room: Room) -> None:
    given = place(room, mark)
    outcome = command(room, *given)
    if outcome.code:
        check_error_line(outcome)
    demand("Traceback" not in outcome.err, outcome.err[-300:])
    check_clean(outcome)
    if mark.startswith("[bold") and not outcome.code and given[0] == "compare":
        demand("[bold red]" in outcome.out, "markup was obeyed")


def _chat(mark: str, room: Room) -> None:
    outcome = command(room, "chat", "model", "--max-new-tokens=4", stdin=f"Hi {mark}\n".encode())
    demand(outcome.code == 0, outcome.err)
    check_clean(outcome)


HTML = "x<img src=q onerror=alert(1)>`|y"
PAGES = {
    "the name of a prompt file": "prompts",
    "the text of prompts": "texts",
    "the name of the model": "model",
}


def _page(where: str, room: Room) -> None:
    """report.html and README.md show it and do not obey it."""
    given = ["run", "model", "-c", "small.yaml", "-o", "new"]
    if where == "model":
        (room / "model").rename(room / HTML)
        given[1] = HTML
    elif where == "prompts":
        (room / "harmful.jsonl").rename(room / f"{HTML}.jsonl")
        given.append(f"--harmful={HTML}.jsonl")
    else:
        rows = [{"prompt": f"{HTML} {word}?"} for word in "abcdefghijklmnopqrst"]
        (room / "h.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
        given.append("--harmful=h.jsonl")
    outcome = command(room, *given)
    demand(outcome.code == 0, outcome.err)
    for name in ("report.html", "README.md"):
        text = (room / "new" / name).read_text("utf-8")
        # In a card it may stand in code or escaped, in a page escaped alone.
        bare = re.sub(r"```.*?```|``.*?``|`[^`\n]*`", "", text, flags=re.DOTALL)
        shown = text if name.endswith("html") else bare
        demand(not re.search(r"(?<!\\)<img src=q", shown), f"{name} obeys a name")


def _license(text: str, room: Room) -> None:
    """The license of the base stands in the card's head as one value."""
    (room / "model" / "README.md").write_text(f"---\nlicense: {json.dumps(text)}\n---\n# A\n")
    outcome = command(room, "run", "model", "-c", "small.yaml", "-o", "new")
    demand(outcome.code == 0, outcome.err)
    card = (room / "new" / "README.md").read_text("utf-8")
    head = yaml.safe_load(card.split("---\n")[1])
    demand(isinstance(head, dict) and "injected" not in head, "the card's head was changed")
    demand(not re.search(r"^# injected", card, re.MULTILINE), "a heading was injected")
    demand(not re.search("[\x00-\x08\x0b-\x1f]", card), "control characters in the card")


LICENSES = {
    "a line": "mit\ninjected: true",
    "the end of the head": "mit\n---\n# injected",
    "a color": "\x1b[31mmit",
    "a tag": "!!python/object:x",
    "5,000 letters": "a" * 5000,
}


def cases() -> Iterator[Case]:
    """Every mark in every place."""
    for name, (place, mark) in product(PLACES, MARKS):
        yield Case(KIND, name, partial(_shown, place, mark))
    for name, mark in MARKS.items():
        yield Case(KIND, f"in chat / {name}", partial(_chat, mark))
    for name, where in PAGES.items():
        yield Case(KIND, f"HTML in {name}", partial(_page, where))
    for name, text in LICENSES.items():
        yield Case(KIND, f"{name} in the license", partial(_license, text))


__all__: list[Any] = ["cases"]
