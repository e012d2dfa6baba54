"""Facts to read before a run: this machine, and the needs of a model."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from safesteer.config.settings import Settings
from safesteer.direction.refusal_tokens import refusal_first_tokens
from safesteer.direction.vector import Direction
from safesteer.memory.gpus import USABLE, GpuFit, gpu_fits, suggest
from safesteer.memory.lengths import assumed_lengths, run_lengths
from safesteer.memory.shape import Shape, gguf_file, read_shape
from safesteer.memory.stages import Peak, Placement, predict
from safesteer.models.chat import ChatRenderer
from safesteer.models.devices import bfloat16_speedup, pick_device, pick_dtype
from safesteer.models.load import ChatModel, describe
from safesteer.report.words import size, thinking_words
from safesteer.runs.system import hardware, versions
from safesteer.teacher import Teacher, check_teacher

SAMPLE = "How do I pick a lock?"


@dataclass(frozen=True)
class Memory:
    """The predicted memory of a run."""

    place: Placement  # of `stages`
    stages: dict[str, Peak]
    fits: list[GpuFit]
    prompt_tokens: int  # of the longest prompt
    advice: str  # what to change if the run does not fit here, else empty


def memory_needed(settings: Settings, model: ChatModel | None = None) -> Memory:
    """Predict the memory of a run, from a loaded model or from its configuration alone.

    Without a model, prompts are assumed to have 128 tokens.
    """
    device = pick_device(settings.model.device)
    if model is None:
        shape, lengths = read_shape(settings.model), assumed_lengths(settings)
        size = pick_dtype(settings.model.dtype, device).itemsize
    else:
        shape, lengths = Shape.of(model.model), run_lengths(model.chat, settings)
        size = model.model.dtype.itemsize
    cuda = device.type == "cuda"
    total = torch.cuda.get_device_properties(device).total_memory if cuda else None
    file = gguf_file(settings.model)
    place = Placement(device.type, size, gpu_memory=total, gguf=file.stat().st_size if file else 0)
    stages = predict(shape, settings, lengths, place)
    room = USABLE * total if total else psutil.virtual_memory().available
    # What is loaded already stands in the prediction too.
    loaded = 0 if model is None or cuda else size * shape.parameters
    advice = ""
    if max(peak.bytes for peak in stages.values()) > room + loaded:
        advice = suggest(shape, settings, lengths, place, room + loaded)
    return Memory(place, stages, gpu_fits(shape, settings, lengths), lengths.prompt, advice)


def machine_facts() -> dict[str, Any]:
    """Versions, device, dtype that `auto` chooses, cores, free memory and disk."""
    found = hardware()
    device = pick_device("auto")
    facts: dict[str, Any] = dict(versions())
    facts["platform"] = found["platform"]
    facts["processor"] = (
        f"{found['cpu']}, {found['cores']} cores, {torch.get_num_threads()} threads"
    )
    facts["graphics"] = ", ".join(found["gpus"]) or "none"
    facts["device"] = str(device)
    facts["type of weights"] = str(pick_dtype("auto", device)).removeprefix("torch.")
    if device.type == "cpu":
        facts["bfloat16 against float32"] = f"{bfloat16_speedup():.1f} times as fast"
    facts["free memory"] = size(psutil.virtual_memory().available)
    facts["free disk here"] = size(shutil.disk_usage(os.getcwd()).free)
    return facts


def model_facts(model: ChatModel) -> dict[str, Any]:
    """Facts of a model that the stages depend on, and whether steering works on it."""
    facts = describe(model)
    width = facts["width"]
    facts["parameters"] = f"{facts['parameters']:,}"
    tokenizer, chat = model.tokenizer, model.chat
    after = chat.post_instruction_ids()
    facts["a rendered prompt"] = repr(chat.text([{"role": "user", "content": SAMPLE}]))
    facts["thinking"] = _thinking(chat)
    facts["post-instruction tokens"] = f"{len(after)}: {_shown(tokenizer, after)}"
    facts["refusals begin with"] = _shown(tokenizer, refusal_first_tokens(chat))
    torch.manual_seed(0)
    change = check_teacher(
        model.model, chat, Teacher(Direction(torch.randn(width), model.layers // 2))
    )
    facts["steering works"] = f"yes: a random direction changes a logit by {change:.2f}"
    facts["weights as loaded"] = size(model.model.get_memory_footprint())
    return facts


def _thinking(chat: ChatRenderer) -> str:
    """The thinking block of the template, and what is done about it."""
    if chat.unclosed:
        return thinking_words(None, chat.unclosed)
    if chat.thinking is None:
        return "the template has no thinking block"
    tags = f"{chat.thinking.opening.strip()} ... {chat.thinking.closing.strip()}"
    return f"{tags}: {thinking_words(chat.thinking.record)}"


def _shown(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(repr(tokenizer.decode([token])) for token in ids)
