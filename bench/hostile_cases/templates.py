"""Chat templates that ignore or cut the user's text, fail, or write today's date."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import Any

from bench.hostile_cases.case import Case, command, demand, stops, works
from bench.hostile_cases.room import (
    MODEL_COMMANDS,
    SHORT,
    Room,
    completions,
    product,
    results_of,
    template_of,
    words,
)

KIND = "templates"
START, END = "<|im_start|>", "<|im_end|>\n"
ASSISTANT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def turns(content: str, before: str = "") -> str:
    """A template that writes every message with this expression."""
    body = f"{START}{{{{ message['role'] }}}}\n{content}{END}"
    return f"{before}{{% for message in messages %}}{body}{{% endfor %}}{ASSISTANT}"


CONTENT = "{{ message['content'] }}"
BAD = {
    "ignores the user's text": f"{START}user\nHello.{END}{ASSISTANT}",
    "ignores all messages but the system's": (
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        f"{CONTENT}{{% endif %}}{{% endfor %}}{ASSISTANT}"
    ),
    "cuts the user's text": turns("{{ message['content'][:2] }}"),
    "reads another key": turns("{{ message['text'] }}"),
    "writes nothing": "{% if false %}x{% endif %}",
    "raises always": "{{ raise_exception('not today') }}",
    "is cut": turns(CONTENT)[:60],
    "calls what is not there": turns("{{ shout(message['content']) }}"),
    "reads a message that is not there": "{{ messages[5]['content'] }}" + ASSISTANT,
    "divides by zero": "{{ 1 / 0 }}" + turns(CONTENT),
    "counts for ever": "{% for i in range(1000000000) %}x{% endfor %}" + turns(CONTENT),
    "reaches for Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}" + turns(CONTENT),
    "includes a file": "{% include '/etc/hostname' %}" + turns(CONTENT),
}
GOOD = {
    "trims": turns("{{ message['content'] | trim }}"),
    "has a default system message": turns(CONTENT, f"{START}system\nBe kind.{END}"),
    "drops the system message": (
        "{% for message in messages if message['role'] != 'system' %}"
        f"{START}{{{{ message['role'] }}}}\n{CONTENT}{END}{{% endfor %}}{ASSISTANT}"
    ),
    "writes today's date": turns(CONTENT, "Today is {{ strftime_now('%d %B %Y') }}.\n"),
    "reads parts": turns(
        "{% for part in message['content'] %}{% if part is mapping %}{{ part['text'] }}"
        "{% endif %}{% endfor %}"
    ),
}
DATED = turns(CONTENT, "{{ strftime_now('%A %d %B %Y') }}.\n")
COMMANDS = {name: MODEL_COMMANDS[name] for name in ("doctor", "direction", "eval", "generate")}


def _refused(template: str, words_: list[str], room: Room) -> None:
    template_of(template)(room / "model")
    stops(room, *words(words_), names="template", stdin=b"Hello\n")


def _refused_as_option(template: str, room: Room) -> None:
    (room / "wrong.jinja").write_text(template)
    option = ("--chat-template", "wrong.jinja")
    stops(
        room,
        *MODEL_COMMANDS["generate"][:1],
        "model",
        *option,
        *MODEL_COMMANDS["generate"][2:],
        names="template",
    )


def _accepted(template: str, words_: list[str], room: Room) -> None:
    template_of(template)(room / "model")
    works(room, *words(words_), stdin=b"Hello\n", may_write=r"^(new/|answers)")


def _missing(words_: list[str], room: Room) -> None:
    (room / "model" / "chat_template.jinja").unlink()
    stops(room, *words(words_), names="template", stdin=b"Hello\n")


class _Later(datetime):
    """Another day."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime(2031, 2, 3, 4, 5, tzinfo=tz)


def _tomorrow() -> None:
    """From now on templates read the clock of another day."""
    from transformers.utils import chat_template_utils

    chat_template_utils.datetime = _Later
    for name in ("_compile_jinja_template", "_cached_compile_jinja_template"):
        cached = getattr(chat_template_utils, name, None)
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()


def _resumed_next_day(stage: str, room: Room) -> None:
    """The same files as a run that was made in one day."""
    template_of(DATED)(room / "model")
    for name in ("whole", "new"):
        last = "run" if name == "whole" else stage
        outcome = command(room, last, "model", "-c", "small.yaml", "-o", name)
        demand(outcome.code == 0, outcome.err)
    _tomorrow()
    outcome = command(room, "run", "model", "-c", "small.yaml", "-o", "new")
    demand(outcome.code == 0, outcome.err)
    one, two = results_of(room / "whole"), results_of(room / "new")
    differ = [name for name in one if two.get(name) != one[name]]
    demand(not differ, f"differ from the run of one day: {', '.join(differ[:3])}", silent=True)


def _same_next_day(words_: list[str], room: Room) -> None:
    """What a finished run answers does not depend on the day."""
    template_of(DATED)(room / "model")
    outcome = command(room, "run", "model", "-c", "small.yaml", "-o", "new")
    demand(outcome.code == 0, outcome.err)
    outcome = command(room, *words_, "first.jsonl")
    demand(outcome.code == 0, outcome.err)
    _tomorrow()
    outcome = command(room, *words_, "second.jsonl")
    demand(outcome.code == 0, outcome.err)
    read = completions if words_[0] == "generate" else _figures
    one, two = read(room / "first.jsonl"), read(room / "second.jsonl")
    demand(one == two, "another day, another answer", silent=True)


def _figures(path: Any) -> Any:
    return json.loads(path.read_text("utf-8"))["results"] if path.exists() else None


def cases() -> Iterator[Case]:
    """Every template at each command that renders prompts; and the date."""
    for name, (template, words_) in product(BAD, COMMANDS):
        yield Case(KIND, name, partial(_refused, template, words_))
    for name, template in BAD.items():
        yield Case(KIND, f"{name} / --chat-template", partial(_refused_as_option, template))
    for name, (template, words_) in product(GOOD, {**COMMANDS, "chat": MODEL_COMMANDS["chat"]}):
        yield Case(KIND, f"right: {name}", partial(_accepted, template, words_))
    for name, words_ in COMMANDS.items():
        yield Case(KIND, f"is missing / {name}", partial(_missing, words_))
    for stage in ("direction", "tokens", "train"):
        yield Case(
            KIND, f"a date, resumed the next day after {stage}", partial(_resumed_next_day, stage)
        )
    asked = ("--prompts", "harmful.jsonl", *SHORT, "--output")
    for name, words_ in {
        "generate": ["generate", "new", *asked],
        "generate --base": ["generate", "new", "--base", *asked],
        "generate --teacher": ["generate", "new", "--teacher", *asked],
    }.items():
        yield Case(KIND, f"a date, the next day / {name}", partial(_same_next_day, words_))
