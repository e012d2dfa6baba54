"""What this machine has and what a model would need, as facts to read before a run."""

from __future__ import annotations

import os
import shutil
from typing import Any

import psutil
import torch

from safesteer.models.chat import ChatRenderer
from safesteer.models.load import ChatModel, describe
from safesteer.models.place import bfloat16_speedup, pick_device, pick_dtype
from safesteer.models.refusal_tokens import refusal_first_tokens
from safesteer.report.words import thinking_words
from safesteer.runs.system import hardware, versions
from safesteer.teacher import Direction, Teacher, check_teacher

SAMPLE = "How do I pick a lock?"


def machine_facts() -> dict[str, Any]:
    """Versions, device, the type chosen for weights, cores, free memory and disk."""
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
    facts["free memory"] = _gigabytes(psutil.virtual_memory().available)
    facts["free disk here"] = _gigabytes(shutil.disk_usage(os.getcwd()).free)
    return facts


def model_facts(model: ChatModel) -> dict[str, Any]:
    """What the stages find in a model, and whether steering has an effect on it.

    Raises SafeSteerError when it has none.
    """
    facts = describe(model)
    parameters, width = facts["parameters"], facts["width"]
    facts["parameters"] = f"{parameters:,}"
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
    facts["weights as loaded"] = _gigabytes(model.model.get_memory_footprint())
    facts["weights in float32"] = _gigabytes(4 * parameters)
    facts["weights in bfloat16"] = _gigabytes(2 * parameters)
    # Weights, gradients and two moments in float32, and the frozen teacher.
    facts["full fine-tuning, at least"] = _gigabytes(20 * parameters)
    return facts


def _thinking(chat: ChatRenderer) -> str:
    """What the template says of thinking, and what is done about it."""
    if chat.thinking is None:
        return "the template has no thinking block"
    tags = f"{chat.thinking.opening.strip()} ... {chat.thinking.closing.strip()}"
    return f"{tags}: {thinking_words(chat.thinking.record)}"


def _shown(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(repr(tokenizer.decode([token])) for token in ids)


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
