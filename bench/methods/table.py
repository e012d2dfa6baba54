"""The table of methods: changes to a recipe, each under a name.

Names fit the recipe of the built-in model. Any other change needs no entry: `--set` changes a
setting of every method in a sweep.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from safesteer.config.load import load_settings
from safesteer.config.settings import Settings

MAX_STEPS = 60  # a quarter of the recipe's: enough for plain requests, hardly for prefilled answers


@dataclass(frozen=True)
class Method:
    """A way to make the model refuse.

    Attributes:
        description: in a few words.
        changes: settings that differ from the recipe's.
        kind: `distill`; `sft` or `dpo` (TRL's trainers); `teacher` or `base` (no training).
        random_tokens: draw S at random, as many as the method would choose.
        means: steer the teacher by the difference of mean activations on harmful and harmless
            prompts, at the layer and with the norm of the direction that was found.
        anchor_prompts: take anchors from this many prompts of each set; from all if None.
    """

    description: str
    changes: dict[str, Any] = field(default_factory=dict)
    kind: str = "distill"
    random_tokens: bool = False
    means: bool = False
    anchor_prompts: int | None = None


def settings_of(config: str, overrides: Sequence[str], method: Method, seed: int) -> Settings:
    """The recipe with MAX_STEPS steps, the method's changes, then the command line's."""
    changes = [f"{key}={json.dumps(value)}" for key, value in method.changes.items()]
    steps = f"train.max_steps={MAX_STEPS}"
    return load_settings(config, [steps, *changes, *overrides, f"seed={seed}"])


_PUBLISHED = {
    "direction.advanced.coefficients": [1.0],
    "teacher.context": "none",
    "teacher.strength": 1.0,
    "teacher.temperature": 1.0,
    "tokens.method": "vote",
    "tokens.num_tokens": 50,
    "tokens.prompts": "harmless",
    "tokens.num_generations": 8,
    "tokens.horizon": 7,
    "tokens.advanced.end_of_turn": False,
    "train.divergence": "paper",
    "train.anchor_share": 0.0,
    "train.anchor_weight": 1.0,
    "train.prefill_share": 0.0,
    "train.short_rollout_length": None,
    "train.lora.kfac_damping": None,
    "train.advanced.prompt_gradient": True,
}
_STEERING_ONLY = {"teacher.context": "none", "teacher.strength": 1.0}
_DEMONSTRATIONS = {"teacher.context": "demonstrations", "teacher.demonstrations": 4}
_NO_STEERING = {"teacher.strength": 0.0}
_PLAIN_STEPS = {"train.lora.kfac_damping": None}
_TWO_SIDED = {"train.wrong_refusals": "repair"}
_SFT = "SFT on one refusal, on anchors on the base's answers"
_DPO = "DPO, a refusal preferred to the base's answer; on anchors the reverse"
_DIVERGENCES = {
    "forward": "forward KL on S",
    "tail_forward": "the sum of tail and forward",
    "generalized": "generalized reverse KL on S",
    "tail": "reverse KL on S, all other tokens counted as one",
    "renormalized": "reverse KL renormalized over S",
    "paper": "the published loss on S",
}


def _rate(rate: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    return {**(changes or {}), "train.learning_rate": float(rate)}


def _targets(*modules: str) -> dict[str, Any]:
    return {"train.lora.target_modules": list(modules)}


METHODS = {
    "base": Method("the base model", kind="base"),
    "teacher": Method("the teacher itself, without training", kind="teacher"),
    "recipe": Method("SafeSteer with the recipe"),
    "published": Method("SafeSteer with the published choices", _PUBLISHED),
    **{
        f"published@{rate}": Method(f"published, learning rate {rate}", _rate(rate, _PUBLISHED))
        for rate in ("5e-4", "1e-4")
    },
    # Other ways to train
    "full-vocabulary": Method(
        "reverse KL over the vocabulary", {"train.divergence": "tail", "train.loss_tokens": "all"}
    ),
    **{
        f"{kind}@{rate}": Method(
            f"{description}, learning rate {rate}", _rate(rate, _PLAIN_STEPS), kind
        )
        for kind, description in (("sft", _SFT), ("dpo", _DPO))
        for rate in ("2e-3", "5e-4")
    },
    "sft-kfac@2e-3": Method(f"{_SFT}, with the recipe's K-FAC", _rate("2e-3"), "sft"),
    "dpo-no-anchors@5e-4": Method(
        "DPO on harmful prompts alone, learning rate 5e-4",
        _rate("5e-4", {**_PLAIN_STEPS, "train.anchor_share": 0.0}),
        "dpo",
    ),
    # Divergences, each at two learning rates; the recipe is tail_forward@2e-3
    **{
        f"{name}@{rate}": Method(
            f"{description}, learning rate {rate}", _rate(rate, {"train.divergence": name})
        )
        for name, description in _DIVERGENCES.items()
        for rate in ("2e-3", "5e-4")
    },
    # Teachers
    "steering-only": Method("teacher: full steering, no context", _STEERING_ONLY),
    "steering-by-means": Method(
        "steering-only, by the difference of harmful and harmless prompts",
        _STEERING_ONLY,
        means=True,
    ),
    "refusals-only": Method("teacher: refusals in context, no steering", _NO_STEERING),
    "system-prompt": Method(
        "teacher: safety system prompt, no steering",
        {"teacher.context": "system-prompt", **_NO_STEERING},
    ),
    "demonstrations": Method(
        "teacher: answered and refused requests in context, no steering",
        {**_DEMONSTRATIONS, **_NO_STEERING},
    ),
    "demonstrations+steering": Method(
        "teacher: demonstrations, and the recipe's steering", _DEMONSTRATIONS
    ),
    "temperature-1": Method("teacher at temperature 1", {"teacher.temperature": 1.0}),
    # Safety tokens
    "vote": Method("S by vote, 50 tokens", {"tokens.method": "vote", "tokens.num_tokens": 50}),
    **{
        f"mass-{count}": Method(f"S by mass, {count} tokens", {"tokens.num_tokens": count})
        for count in (3, 10, 50, 1000)
    },
    "harmless-ground": Method("S chosen on harmless prompts", {"tokens.prompts": "harmless"}),
    "random-tokens": Method("S at random, of the same size", random_tokens=True),
    # Anchors
    "no-anchors": Method("harmful prompts alone", {"train.anchor_share": 0.0}),
    "anchors-50": Method("half of each step are anchors", {"train.anchor_share": 0.5}),
    "anchors-weigh-4": Method("anchors of weight 4", {"train.anchor_weight": 4.0}),
    "anchors-plain": Method("harmless anchors", {"train.advanced.anchor_sets": ["harmless"]}),
    "anchors-borderline": Method(
        "borderline anchors", {"train.advanced.anchor_sets": ["borderline"]}
    ),
    **{
        f"anchor-prompts-{count}": Method(
            f"anchors from {count} prompts of each set", anchor_prompts=count
        )
        for count in (10, 50, 200)
    },
    "anchors-weigh-8": Method("anchors of weight 8", {"train.anchor_weight": 8.0}),
    # Wrong refusals
    "two-sided": Method("wrong refusals are repaired", _TWO_SIDED),
    **{
        f"two-sided-{strength}": Method(
            f"wrong refusals are repaired at strength {strength}",
            {**_TWO_SIDED, "teacher.advanced.repair_strength": strength},
        )
        for strength in (0.2, 0.6, 0.8)
    },
    "two-sided-weigh-1": Method(
        "wrong refusals are repaired, anchors of weight 1",
        {**_TWO_SIDED, "train.anchor_weight": 1.0},
    ),
    # Rollouts and prompts
    "no-prefills": Method("no prefilled answers", {"train.prefill_share": 0.0}),
    **{
        f"prompts-{count}": Method(f"{count} harmful prompts", {"train.num_prompts": count})
        for count in (10, 25, 50, 100)
    },
    "samples-4": Method(
        "four rollouts per prompt, of a quarter as many prompts per step",
        {"train.prompts_per_step": 4, "train.num_generations": 4},
    ),
    # Adapters
    "plain-steps": Method("no K-FAC preconditioning", _PLAIN_STEPS),
    "answer-gradient": Method(
        "no gradient through the prompts, which are read once per generation",
        {"train.advanced.prompt_gradient": False},
    ),
    "prompt-gradient": Method(
        "gradient through the prompts too", {"train.advanced.prompt_gradient": True}
    ),
    "extrapolated": Method("scaled by 1.25 at the end", {"train.lora.extrapolation": 0.25}),
    "o-and-down": Method("adapters on o_proj and down_proj", _targets("o_proj", "down_proj")),
    "and-keys": Method(
        "adapters on k_proj too", _targets("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")
    ),
    "all-modules": Method(
        "adapters on all linear layers", {"train.lora.target_modules": "all-linear"}
    ),
    "rank-64": Method("LoRA of rank 64", {"train.lora.r": 64, "train.lora.alpha": 128}),
    **{
        f"from-layer-{layer}": Method(
            f"adapters from layer {layer} of 30 on", {"train.lora.first_layer": layer}
        )
        for layer in (6, 8)
    },
}
