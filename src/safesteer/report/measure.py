"""Measurements inside base, aligned model and teacher for the report.

On a few prompts: probabilities of the safety tokens S, divergence at each token of some rollouts,
and hidden states in two dimensions. Only the rows of S are read from the output matrix, and no
[positions, vocabulary] tensor outlives a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from safesteer.distill.config import ROLLOUT_TEMPERATURE
from safesteer.distill.losses import generalized
from safesteer.inference import VARIANTS
from safesteer.inference.variant import ModelVariant
from safesteer.models.chat import Message, pad_left
from safesteer.models.context import max_positions
from safesteer.models.generate import Decoding, generate
from safesteer.models.hidden_states import completion_states, hidden_states
from safesteer.models.layers import find_blocks
from safesteer.models.lm_head import OutputHead
from safesteer.models.oom import row_by_row
from safesteer.models.steering import edit_block_input
from safesteer.prompts import Prompt
from safesteer.runs.artifacts import RunArtifacts

TOKEN_PROMPTS = 16
HARMFUL_ROLLOUTS = 5  # each from base and aligned model
OTHER_ROLLOUTS = 3  # per other set, from the aligned model
ROLLOUT_TOKENS = 32
STATE_PROMPTS = 50  # per set
_BATCH = 16

Conversations = Sequence[Sequence[Message]]


@torch.no_grad()
def measure(artifacts: RunArtifacts) -> dict[str, Any]:
    """The content of report/measurements.json of a trained run, as plain numbers."""
    # The aligned model first: its adapter changes the modules that the others run on.
    aligned = artifacts.variant("aligned")
    variants = {**{name: artifacts.variant(name) for name in VARIANTS}, "aligned": aligned}
    run = _Measured(artifacts, variants, artifacts.load_tokens())
    steps = {"tokens": run.token_probabilities, "rollouts": run.rollouts, "states": run.states}
    content: dict[str, Any] = {}
    for done, (name, step) in enumerate(steps.items()):
        artifacts.reporter.progress("measuring the models", done, len(steps))
        content[name] = step()
    artifacts.reporter.progress("measuring the models", len(steps), len(steps))
    return content


@dataclass(frozen=True)
class _Measured:
    """A trained run, its variants by name, and the ids of S."""

    artifacts: RunArtifacts
    variants: dict[str, ModelVariant]
    tokens: list[int]

    def token_probabilities(self) -> dict[str, Any]:
        """Mean probability of each safety token on the teacher's continuations, by model.

        As in the choice of S, whose figures base and teacher repeat, but on fewer prompts.
        """
        settings = self.artifacts.settings.tokens
        prompts = self.artifacts.prompts[settings.prompts].validation
        prompts = self._first(prompts, min(TOKEN_PROMPTS, settings.advanced.num_prompts))
        conversations = [prompt.messages for prompt in prompts]
        teacher = self.variants["teacher"].teacher
        assert teacher is not None
        tails = self._answers("teacher", conversations, settings.horizon, teacher.temperature)
        means = {}
        for name, variant in self.variants.items():
            rows = [p.exp() for p in _log_probs(variant, conversations, tails, self.tokens)]
            means[name] = torch.cat(rows).mean(0)  # [K]
        return {
            "set": settings.prompts,
            "prompts": len(conversations),
            "positions": sum(map(len, tails)),
            "p": {name: _numbers(p) for name, p in means.items()},
            "mass": {name: _number(p.sum().item()) for name, p in means.items()},
            "ids": self.tokens,
        }

    def rollouts(self) -> list[dict[str, Any]]:
        """Sampled answers with the divergence on S, at each token, from the target of training.

        The target is the teacher on harmful prompts, and the base on all others (anchors). The base
        answers harmful prompts, too: that is the signal at the start of training.
        """
        sets = self.artifacts.prompts
        harmful = [
            ("harmful", prompt) for prompt in self._first(sets["harmful"].test, HARMFUL_ROLLOUTS)
        ]
        others = [
            (name, prompt)
            for name in ("borderline", "harmless")
            for prompt in self._first(sets[name].test, OTHER_ROLLOUTS)
        ]
        return [
            *self._compared(harmful, "base", "teacher"),
            *self._compared(harmful, "aligned", "teacher"),
            *self._compared(others, "aligned", "base"),
        ]

    def _compared(
        self, prompts: list[tuple[str, Prompt]], variant: str, reference: str
    ) -> Iterator[dict[str, Any]]:
        """Answers of `variant`, with the probabilities of both models at each token."""
        conversations = [prompt.messages for _, prompt in prompts]
        tails = self._answers(variant, conversations, ROLLOUT_TOKENS, ROLLOUT_TEMPERATURE)
        # The rollouts' own tokens are read in the same pass, after the K safety tokens.
        seen = sorted({token for tail in tails for token in tail})
        column = {token: len(self.tokens) + index for index, token in enumerate(seen)}
        read = [
            _log_probs(self.variants[name], conversations, tails, self.tokens + seen)
            for name in (variant, reference)
        ]
        on_s = slice(0, len(self.tokens))
        for (set_name, prompt), tail, own, other in zip(prompts, tails, *read, strict=True):
            columns = torch.tensor([column[token] for token in tail], device=own.device)[:, None]
            yield {
                "set": set_name,
                "prompt": prompt.text,
                "variant": variant,
                "reference": reference,
                "tokens": token_texts(self.artifacts.model.tokenizer, tail),
                "kl": _numbers(generalized(own[:, on_s], other[:, on_s])),
                "p": _numbers(own.gather(1, columns)[:, 0].exp()),
                "p_reference": _numbers(other.gather(1, columns)[:, 0].exp()),
            }

    def states(self) -> list[dict[str, Any]]:
        """Hidden states at the last prompt token in two dimensions: steered layer and output."""
        teacher = self.variants["teacher"].teacher
        layer = teacher.direction.layer if teacher and teacher.direction else None
        states: dict[str, dict[str, list[torch.Tensor]]] = {name: {} for name in self.variants}
        for name, variant in self.variants.items():
            for set_name in ("harmful", "harmless"):
                prompts = self._first(self.artifacts.prompts[set_name].test, STATE_PROMPTS)
                conversations = [prompt.messages for prompt in prompts]
                states[name][set_name] = _last_states(variant, conversations, layer)
        places = [] if layer is None else [("layer", layer)]
        places.append(("output", self.artifacts.model.layers))
        panels = []
        for index, (place, number) in enumerate(places):
            # [N, D] of each model and set at this place
            points = {
                name: {set_name: found[index] for set_name, found in by_set.items()}
                for name, by_set in states.items()
            }
            if all(p.isfinite().all() for by_set in points.values() for p in by_set.values()):
                panels.append({"place": place, "layer": number, **project(points)})
        return panels

    def _first(self, prompts: Sequence[Prompt], count: int) -> list[Prompt]:
        """The first `count` prompts that every variant can read and answer.

        The stages before this one have counted the others.
        """
        positions = max_positions(self.artifacts.model.model)

        def fits(prompt: Prompt) -> bool:
            variants = self.variants.values() if positions is not None else ()
            return all(
                len(_prompts(variant, [prompt.messages])[0]) + ROLLOUT_TOKENS <= (positions or 0)
                for variant in variants
            )

        return list(islice(filter(fits, prompts), count))

    def _answers(
        self, name: str, conversations: Conversations, max_new_tokens: int, temperature: float
    ) -> list[list[int]]:
        """Token ids that a variant samples, end of turn included, with the run's seed."""
        variant = self.variants[name]
        torch.manual_seed(self.artifacts.settings.seed)
        with variant.active():
            return generate(
                variant.runner,
                variant.model.tokenizer,
                _prompts(variant, conversations),
                Decoding(max_new_tokens, temperature),
                batch_size=_BATCH,
            )


def project(points: dict[str, dict[str, torch.Tensor]]) -> dict[str, Any]:
    """States in the plane of the base's first two principal components, and shifts of the means.

    `points` is {model: {harmful, harmless: [N, D]}}; in the result they are [N, 2], and the first
    axis points to the harmful prompts. "explained" holds shares of the base's variance. "shift" is
    measured per set in the full space: how far the aligned mean moved from the base's along the
    teacher's movement, as a share of it, and the cosine of both movements.
    """
    base = torch.cat(list(points["base"].values())).double()
    center = base.mean(0)
    _, sizes, axes = torch.linalg.svd(base - center, full_matrices=False)
    plane = axes[:2]
    # Signs of singular vectors are arbitrary: fix them.
    between = points["base"]["harmful"].double().mean(0) - center
    plane = plane * torch.where((plane @ between) < 0, -1.0, 1.0)[:, None]
    variance = sizes.square() / sizes.square().sum().clamp_min(1e-30)
    shift = {}
    for set_name in points["base"]:
        start = points["base"][set_name].double().mean(0)
        goal = points["teacher"][set_name].double().mean(0) - start
        moved = points["aligned"][set_name].double().mean(0) - start
        length = goal.norm().clamp_min(1e-30)
        shift[set_name] = {
            "shift": _number((moved @ goal / length.square()).item()),
            "cosine": _number((moved @ goal / (length * moved.norm().clamp_min(1e-30))).item()),
        }
    return {
        "explained": _numbers(variance[:2]),
        "points": {
            name: {
                set_name: [_numbers(row) for row in (states.double() - center) @ plane.T]
                for set_name, states in by_set.items()
            }
            for name, by_set in points.items()
        },
        "shift": shift,
    }


def _log_probs(
    variant: ModelVariant, conversations: Conversations, tails: list[list[int]], tokens: list[int]
) -> list[torch.Tensor]:  # [T, K] of each conversation, in their order
    """Log-probabilities of `tokens` at the positions that predict the tails.

    The teacher's are at its temperature, as in training.
    """
    head = OutputHead.of(variant.runner)
    if variant.teacher is not None:
        head = head.with_temperature(variant.teacher.temperature)
    prompts = _prompts(variant, conversations)
    device, pad_id = variant.model.model.device, variant.model.tokenizer.pad_token_id
    columns = torch.tensor(tokens, device=device)

    def read(rows: list[int]) -> list[torch.Tensor]:
        asked, answers = [prompts[row] for row in rows], [tails[row] for row in rows]
        with variant.active():
            batch = completion_states(variant.runner, asked, answers, pad_id)
        return [head.detached_log_probs(states, columns) for states in batch]

    whole = [[*prompt, *tail] for prompt, tail in zip(prompts, tails, strict=True)]
    return row_by_row(whole, _BATCH, read, device)


def _last_states(
    variant: ModelVariant, conversations: Conversations, layer: int | None
) -> list[torch.Tensor]:  # [N, D] at the input of `layer`, if given, and at the output
    """States at the last token of each prompt, on the CPU, ordered by the prompt's length."""
    model, device = variant.model, variant.model.model.device
    prompts = sorted(_prompts(variant, conversations), key=len)
    block = None if layer is None else find_blocks(variant.runner)[layer]
    entered: list[torch.Tensor] = []

    def keep(hidden: torch.Tensor) -> torch.Tensor:
        entered[:] = [hidden[:, -1]]  # of the batch: a pass over a shared prefix comes before it
        return hidden

    def read(rows: list[int]) -> list[torch.Tensor]:  # [1 or 2, D] of each
        ids, mask = pad_left([prompts[row] for row in rows], model.tokenizer.pad_token_id, device)
        last = hidden_states(variant.runner, ids, mask)[:, -1]
        return list(torch.stack([states.float().cpu() for states in (*entered, last)], dim=1))

    # Added inside `active`: hooks run in the order of adding, the teacher's first.
    with variant.active(), edit_block_input(block, keep) if block else nullcontext():
        return list(torch.stack(row_by_row(prompts, _BATCH, read, device)).unbind(1))


def _prompts(variant: ModelVariant, conversations: Conversations) -> list[list[int]]:
    read = variant.teacher.messages if variant.teacher else list
    # Answers of a model that thinks follow an empty thinking block.
    return [variant.model.chat.without_thinking.ids(read(messages)) for messages in conversations]


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; a character of several tokens belongs to the last one."""
    texts = []
    shown = ""
    for index in range(len(ids)):
        whole = tokenizer.decode(list(ids[: index + 1]), skip_special_tokens=False)
        new = whole[len(shown) :]
        if new.endswith("\ufffd") and index + 1 < len(ids):
            texts.append("")
            continue
        texts.append(new)
        shown = whole
    return texts


def _number(value: float) -> float:
    """Four significant digits, so that machines that round differently agree; 0 if not finite."""
    return float(f"{value:.4g}") if math.isfinite(value) else 0.0


def _numbers(values: torch.Tensor) -> list[float]:
    return [_number(value) for value in values.tolist()]
