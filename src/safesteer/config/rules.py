"""Rules between settings: which keys exclude or need each other, in one table.

The sections of the settings check the table whenever they are made, and docs print it. Rules
`of_model` are checked before a run, against the model's shape. A rule without `broken` needs more
of the model, or the machine; the code that finds out raises its message.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any


@dataclass(frozen=True)
class Rule:
    """A rule between settings."""

    keys: tuple[str, ...]
    message: str  # one line if it is broken; `{train.method}` stands for a value
    reason: str  # the rule as a sentence, for docs/settings.md
    broken: Callable[[Any], bool] | None = None  # None: only the model or the machine can tell
    of_model: bool = False  # whether `broken` also reads `shape`, a `memory.shape.Shape`

    def complaint(self, **sections: Any) -> str:
        """The message with its values if these sections break the rule, else an empty string."""
        known = all(key.partition(".")[0] in sections for key in self.keys)
        known = known and self.of_model == ("shape" in sections)
        if known and self.broken is not None and self.broken(SimpleNamespace(**sections)):
            return self.message.format(**sections)
        return ""


def check_rules(**sections: Any) -> None:
    """Raise ValueError for the first broken rule whose keys all lie in these sections.

    With a model's `shape`, only rules of the model are checked.
    """
    for rule in RULES:
        if complaint := rule.complaint(**sections):
            raise ValueError(complaint)


def _fills_positions(key: str, values: Any) -> bool:
    positions = values.shape.positions
    return positions is not None and operator.attrgetter(key)(values) >= positions


DEVICE_MAP = Rule(
    ("model.advanced.device_map", "model.device"),
    "model.advanced.device_map = '{model.advanced.device_map}' and model.device ="
    " '{model.device}' exclude each other. Try: one of them alone",
    "A device map spreads the model over all devices, so it excludes a single device.",
    lambda s: s.model.advanced.device_map is not None and s.model.device != "auto",
)
STEERED_LAYER = Rule(
    ("train.lora.first_layer", "teacher.strength"),
    "train.lora.first_layer = 'steered', but the teacher is not steered at any layer. Try: a"
    " number, or teacher.strength above 0",
    "Adapters can begin at the steered layer only if the teacher is steered.",
    lambda s: (
        s.train.method == "lora" and s.train.lora.first_layer == "steered" and not s.teacher.steers
    ),
)
PREFILLS_AND_THOUGHTS = Rule(
    ("train.prefill_share",),
    "train.prefill_share prefills answers, and this model thinks before it answers. Try:"
    " train.prefill_share=0, or thinking turned off (docs/thinking.md)",
    "A model that thinks first cannot be prefilled: its thoughts come before the answer.",
)
KFAC_AND_ANCHORS = Rule(
    ("train.lora.kfac_damping", "train.advanced.anchor_sets"),
    "train.lora.kfac_damping is measured on anchor prompts, and none has at most"
    " train.advanced.max_prompt_length tokens. Try: a larger length, or"
    " train.lora.kfac_damping=null",
    "K-FAC statistics are measured on anchor prompts, so there must be some.",
)

RULES: tuple[Rule, ...] = (
    Rule(
        ("teacher.strength", "teacher.context"),
        "teacher.strength = 0 and teacher.context = 'none' make the teacher the same as the model."
        " Try: a strength above 0, or teacher.context=refusals",
        "A teacher that neither steers nor reads anything is the model itself and teaches nothing.",
        lambda s: not s.teacher.steers and s.teacher.context == "none",
    ),
    DEVICE_MAP,
    Rule(
        ("train.method", "model.quantization"),
        "train.method = 'full' trains every weight, and model.quantization ="
        " '{model.quantization}' has no gradients for them. Try: train.method=lora, or"
        " model.quantization=none",
        "Quantized weights have no gradients, so only adapters can be trained.",
        lambda s: s.train.method == "full" and s.model.quantization != "none",
    ),
    Rule(
        ("train.method", "model.advanced.device_map"),
        "train.method = 'full' needs a copy of the model for the teacher, which"
        " model.advanced.device_map cannot place. Try: train.method=lora, or several processes"
        " with FSDP",
        "Full fine-tuning needs a frozen copy of the base, which a device map cannot place.",
        lambda s: s.train.method == "full" and s.model.advanced.device_map is not None,
    ),
    Rule(
        ("train.anchor_share", "train.prompts_per_step"),
        "train.anchor_share = {train.anchor_share} leaves no harmful prompt among the"
        " {train.prompts_per_step} prompts of a step. Try: a smaller share, or a larger"
        " train.prompts_per_step",
        "Every step needs at least one harmful prompt.",
        lambda s: s.train.anchors_per_step >= s.train.prompts_per_step,
    ),
    Rule(
        ("train.anchor_share", "train.prompts_per_step"),
        "train.anchor_share = {train.anchor_share} of {train.prompts_per_step} prompts per step is"
        " less than one prompt. Try: a larger share, or a larger train.prompts_per_step",
        "A share above 0 needs at least one anchor in a step.",
        lambda s: s.train.anchor_share > 0 and not s.train.anchors_per_step,
    ),
    Rule(
        ("train.loss_tokens", "train.anchor_tokens"),
        "train.loss_tokens = 'all' and train.anchor_tokens = 'safety' do not go together. Try:"
        " train.anchor_tokens=all, or train.loss_tokens=safety",
        "If the loss is over all tokens, anchors must be held on all tokens too.",
        lambda s: (
            s.train.loss_tokens == "all"
            and s.train.anchor_tokens == "safety"
            and s.train.anchor_share > 0
        ),
    ),
    STEERED_LAYER,
    Rule(
        ("train.wrong_refusals", "teacher.strength"),
        "train.wrong_refusals = 'repair' steers away from refusal, and the teacher is not steered."
        " Try: teacher.strength above 0, or train.wrong_refusals=keep",
        "Wrong refusals are repaired with the direction that steers the teacher.",
        lambda s: s.train.wrong_refusals == "repair" and not s.teacher.steers,
    ),
    Rule(
        ("train.wrong_refusals", "train.anchor_share"),
        "train.wrong_refusals = 'repair' needs harmless prompts in the training, and"
        " train.anchor_share is 0. Try: train.anchor_share=0.75, or train.wrong_refusals=keep",
        "Wrong refusals are repaired on anchors, so there must be some.",
        lambda s: s.train.wrong_refusals == "repair" and not s.train.anchors_per_step,
    ),
    Rule(
        ("train.rollouts", "model.advanced.device_map"),
        "train.rollouts = 'vllm' and model.advanced.device_map ="
        " '{model.advanced.device_map}' exclude each other. Try: one of them alone",
        "Weights on several devices cannot be sent to vLLM.",
        lambda s: s.train.rollouts == "vllm" and s.model.advanced.device_map is not None,
    ),
    Rule(
        ("train.rollouts", "model.quantization"),
        "train.rollouts = 'vllm' and model.quantization = '{model.quantization}' exclude each"
        " other. Try: one of them alone",
        "An adapter cannot be merged into quantized weights without loss.",
        lambda s: s.train.rollouts == "vllm" and s.model.quantization != "none",
    ),
    Rule(
        ("direction.source", "direction.advanced.train_prompts"),
        "direction.source = 'harmful-harmless' and direction.advanced.train_prompts ="
        " {direction.advanced.train_prompts} do not go together. Try: 8 prompts or more",
        "The mean of fewer than 8 prompts is mostly noise, and this source is not tried on it.",
        lambda s: (
            s.direction.source == "harmful-harmless" and s.direction.advanced.train_prompts < 8
        ),
    ),
    Rule(
        ("train.lora.r",),
        "train.lora.r = {train.lora.r} is more than the width of this model, {shape.width}. Try:"
        " 16",
        "No change of the weights has a rank above the model's width.",
        lambda s: s.train.method == "lora" and s.train.lora.r > s.shape.width,
        of_model=True,
    ),
    Rule(
        ("tokens.num_tokens",),
        "tokens.num_tokens = {tokens.num_tokens} is more than the vocabulary of this model,"
        " {shape.vocabulary}. Try: 200",
        "The safety tokens are chosen from the vocabulary.",
        lambda s: s.tokens.num_tokens > s.shape.vocabulary,
        of_model=True,
    ),
    *(
        Rule(
            (key,),
            f"{key} = {{{key}}} leaves no room for a prompt: this model reads"
            f" {{shape.positions}} tokens, prompt and answer together. Try: {usual}",
            "Prompt and answer together must fit into the positions of the model.",
            partial(_fills_positions, key),
            of_model=True,
        )
        for key, usual in (
            ("tokens.horizon", 20),
            ("train.max_completion_length", 64),
            ("evaluate.max_new_tokens", 64),
        )
    ),
    PREFILLS_AND_THOUGHTS,
    KFAC_AND_ANCHORS,
)
