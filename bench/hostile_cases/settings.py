"""Settings that are wrong: refused in one line, before a model is loaded or a folder made."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from bench.hostile_cases.case import Case, demand, stops, works
from bench.hostile_cases.room import Room, garbage, replaced, template_of
from safesteer.config.settings import Section, Settings

KIND = "settings"
DIRECTION = ("direction", "model", "-c", "small.yaml", "-o", "new")
RUN = ("run", "model", "-c", "small.yaml", "-o", "new")


def leaves(section: type[Section] = Settings, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key with its field."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def wrong_values(field: FieldInfo) -> dict[str, Any]:
    """{what is wrong: value}, from the type and the limits of a key."""
    kinds = set(_types(field.annotation))
    found: dict[str, Any] = {}
    if kinds & {int, float}:
        found["a word"] = "many"
        found["NaN" if float in kinds else "infinity"] = float("nan" if float in kinds else "inf")
        for limit in field.metadata:
            if (low := getattr(limit, "ge", getattr(limit, "gt", None))) is not None:
                found["below its limit"] = low - 1
            if (high := getattr(limit, "le", getattr(limit, "lt", None))) is not None:
                found["above its limit"] = high + 1
    if int in kinds:
        found["a fraction"] = 1.5
    if bool in kinds:
        found["a word"] = "maybe"
    if Literal in kinds:
        found["an unknown word"] = "nonsense"
    if str in kinds and list not in kinds:
        found["a list"] = [1, 2]
    if list in kinds:
        found["a number"] = 3
    if dict in kinds:
        found |= {"a word": "x", "a list": [1]}
    if type(None) not in kinds:
        found["nothing"] = None
    if str in kinds or Literal in kinds:
        found.pop("a word", None)
    return found


def _types(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _types(part)
    elif origin is typing.Annotated:
        yield from _types(get_args(annotation)[0])
    else:
        yield origin or annotation


# {what is wrong: (settings, what the line names)}; none needs the model's weights.
RULES: dict[str, tuple[dict[str, Any], str]] = {
    "anchors fill the step": (
        {"train.anchor_share": 0.9, "train.prompts_per_step": 2},
        "anchor_share",
    ),
    "anchors below one prompt": (
        {"train.anchor_share": 0.1, "train.prompts_per_step": 2},
        "anchor_share",
    ),
    "a teacher that is the model": (
        {"teacher.strength": 0, "teacher.context": "none"},
        r"teacher\.strength",
    ),
    "full fine-tuning of quantized weights": (
        {"train.method": "full", "model.quantization": "4bit"},
        "quantization",
    ),
    "vllm with a device map": (
        {"train.rollouts": "vllm", "model.advanced.device_map": "auto"},
        "rollouts",
    ),
    "adapters from a steered layer that is none": (
        {"train.lora.first_layer": "steered", "teacher.strength": 0},
        "first_layer",
    ),
    "loss on all tokens, anchors on some": (
        {"train.loss_tokens": "all", "train.anchor_tokens": "safety"},
        "loss_tokens",
    ),
    "first layer past the last": ({"train.lora.first_layer": 99}, "first_layer"),
    "first layer is the number of layers": ({"train.lora.first_layer": 4}, "first_layer"),
    "modules that no model has": ({"train.lora.target_modules": ["nope"]}, "target_modules"),
    "a module that no model has": ({"train.lora.target_modules": "nope"}, "target_modules"),
    "no modules": ({"train.lora.target_modules": []}, "target_modules"),
    "adapters on the output matrix": ({"train.lora.target_modules": ["lm_head"]}, "lm_head"),
    "a rank above the width": ({"train.lora.r": 5000}, r"lora\.r\b|rank"),
    "a seed of 2**63": ({"seed": 2**63}, "seed"),
    "a seed of 2**64": ({"seed": 2**64}, "seed"),
    "a seed of 31 digits": ({"seed": 10**30}, "seed"),
    "prompts all too long": ({"train.advanced.max_prompt_length": 8}, "max_prompt_length"),
    "a layer past the last": ({"direction.advanced.layers": [99]}, "layers"),
    "a layer below the first": ({"direction.advanced.layers": [-9]}, "layers"),
    "no layers": ({"direction.advanced.layers": []}, "layers"),
    "more safety tokens than tokens": ({"tokens.num_tokens": 10**6}, "num_tokens"),
    "no such template": ({"model.chat_template": "none.jinja"}, r"none\.jinja"),
    "no such benchmark": ({"evaluate.benchmarks": ["advbnch"]}, "advbnch"),
    "no such judge": ({"evaluate.judges": ["offlin-refusal"]}, "offlin-refusal"),
    "no such form": ({"evaluate.benchmarks": ["harmful+nope"]}, "nope"),
    "a benchmark without its file": ({"evaluate.benchmarks": ["advbench"]}, "advbench"),
    "no such folder of files": (
        {"evaluate.benchmarks": ["advbench"], "evaluate.data_dir": "nowhere"},
        "nowhere",
    ),
    "a source of no benchmark": (
        {"evaluate.advanced.sources": {"nope": "harmful.jsonl"}},
        "nope",
    ),
    "a judge without its server": ({"evaluate.judges": ["endpoint"]}, "endpoint"),
    "no such prompts": ({"prompts.harmful": "none.jsonl"}, r"none\.jsonl"),
    "no such column": ({"prompts.column": "promt"}, "promt"),
    "a device that is none": ({"model.device": "gpu"}, "device"),
    "a GPU that is not there": ({"model.device": "cuda:7"}, "cuda"),
    "arguments that are no words": (
        {"model.template_kwargs": {"a b": 1, "messages": 3}},
        "messages",
    ),
    "no such tracker": ({"report_to": ["wandb"]}, "wandb"),
}
FILES = {
    "a list": "- a\n- b\n",
    "a word": "train\n",
    "a number": "7\n",
    "a tab": "train:\n\tmax_steps: 3\n",
    "an open bracket": "train: {max_steps: 3\n",
    "a section twice": "train:\n  max_steps: 3\ntrain:\n  learning_rate: 0.1\n",
    "a key twice": "train:\n  max_steps: 3\n  max_steps: 4\n",
    "an unknown section": "trainn:\n  max_steps: 3\n",
    "an unknown key": "train:\n  max_stps: 3\n",
    "a section that is a word": "train: fast\n",
    "extends nothing known": "extends: defalt\n",
    "extends a list": "extends: [default]\n",
    "extends itself": "extends: wrong.yaml\n",
    "a Python object": "model: !!python/object/apply:os.getcwd []\n",
    "a tag": "model: !secret x\n",
    "two documents": "seed: 1\n---\nseed: 2\n",
    "nested 10,000 deep": "a: " + "[" * 10_000 + "]" * 10_000,
    "a number as key": "3: 4\n",
    "a date": "seed: 2020-01-01\n",
    "an alias to nothing": "train: *none\n",
    "references that grow": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{c}: &{c} [{', '.join(['*' + chr(ord(c) - 1)] * 9)}]\n" for c in "bcdefgh"),
}
OVERRIDES = {
    "no value": "seed",
    "no key": "=3",
    "nothing": "",
    "a dot": "train.=3",
    "dots": "train..max_steps=3",
    "too deep": "train.max_steps.x=3",
    "a section": "train=3",
    "YAML that is open": "train.max_steps=[3",
    "a key of 5,000 letters": f"{'a' * 5000}=3",
    "a control character": "train.\x1b[31mmax=3",
}
RIGHT = {
    "a number with an exponent": ("train.learning_rate", "1e-3"),
    "a number with a plus": ("train.learning_rate", "+0.001"),
    "null": ("train.num_prompts", "null"),
    "spaces": ("train.max_steps", " 2 "),
    "a list in brackets": ("direction.advanced.layers", "[1, 2]"),
    "zero": ("seed", "0"),
    "the largest seed": ("seed", str(2**32 - 1)),
}


def _refused(options: list[str], names: str, words: tuple[str, ...], room: Room) -> None:
    # Whoever loads the model complains about these weights.
    garbage(room / "model" / "model.safetensors")
    stops(room, *words, *options, names=names, code=(2,))
    demand(not (room / "new").exists(), "left a run behind")


def _option(key: str, value: Any) -> list[str]:
    return [
        f"--set={key}={json.dumps(value)}".replace("=NaN", "=.nan").replace("=Infinity", "=.inf")
    ]


def _file(text: str, room: Room) -> None:
    replaced(text)(room / "wrong.yaml")
    options = ["direction", "model", "-c", "wrong.yaml", "-o", "new"]
    stops(room, *options, names=r"wrong\.yaml", code=(2,))
    demand(not (room / "new").exists(), "left a run behind")


def _context(context: str, template: str, room: Room) -> None:
    template_of(template)(room / "model")
    garbage(room / "model" / "model.safetensors")
    option = f"--set=teacher.context={context}"
    stops(room, *DIRECTION, option, names=r"context|template", code=(2,))


def _accepted(key: str, value: str, room: Room) -> None:
    works(room, *DIRECTION, f"--set={key}={value}", may_write="^new/")


# A template that allows one user turn alone, as some do.
STRICT = (
    "{% if messages[0]['role'] != 'user' or messages|length > 1 %}"
    "{{ raise_exception('only one user message, please') }}{% endif %}"
    "<|im_start|>user\n{{ messages[0]['content'] }}<|im_end|>\n"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def cases() -> Iterator[Case]:
    """Every key with every value that its type and limits forbid; rules, files and overrides."""
    for key, field in leaves():
        last = key.rpartition(".")[2]
        for name, value in wrong_values(field).items():
            yield Case(
                KIND, f"{key} / {name}", partial(_refused, _option(key, value), last, DIRECTION)
            )
        wrong = f"{key}x"
        yield Case(
            KIND, f"{key} / misspelled", partial(_refused, _option(wrong, 1), wrong, DIRECTION)
        )
    for name, (values, names) in RULES.items():
        options = [option for key, value in values.items() for option in _option(key, value)]
        yield Case(KIND, f"rule / {name}", partial(_refused, options, names, RUN))
    for name, text in FILES.items():
        yield Case(KIND, f"file / {name}", partial(_file, text))
    for name, text in OVERRIDES.items():
        yield Case(KIND, f"override / {name}", partial(_refused, [f"--set={text}"], "", DIRECTION))
    for context in ("system-prompt", "demonstrations", "refusals"):
        yield Case(KIND, f"a template without {context}", partial(_context, context, STRICT))
    for name, (key, value) in RIGHT.items():
        yield Case(KIND, f"right: {name}", partial(_accepted, key, value))
