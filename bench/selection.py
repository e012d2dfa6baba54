"""Choosing a direction: the published procedure done plainly, against ours.

    python bench/selection.py [MODEL] [--prompts 16] [--layers 10,15,20] [--repeats 1]

Candidates are the differences of means at every post-instruction position of the given layers.
`plain` gives every candidate its three scores, each from a pass over the validation prompts that
projects all positions; `ours` is `score_candidates`. Both take turns; that they keep the same
candidates with the same ablation scores is checked. Printed: seconds, their ratio, and the passes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from safesteer.cli.silence import silence_libraries
from safesteer.config import DirectionSettings
from safesteer.direction import candidates as module
from safesteer.direction.activations import prompt_means
from safesteer.direction.candidates import Candidate, refusal_scores, score_candidates
from safesteer.models.chat import Message, pad_left
from safesteer.models.load import ChatModel, load_model
from safesteer.models.refusal_tokens import refusal_first_tokens
from safesteer.models.steering import ablate, steer
from safesteer.prompts import load_prompt_set
from safesteer.teacher import Direction

Prompts = Sequence[Sequence[Message]]


@torch.no_grad()
def next_token(
    model: ChatModel, prompts: Prompts, hook: AbstractContextManager[None] | None = None
) -> torch.Tensor:  # [N, V]
    """The last row of all logits of the prompts, in batches of 32."""
    parts = []
    with hook or nullcontext():
        for start in range(0, len(prompts), 32):
            ids, mask = pad_left(
                [model.chat.ids(m) for m in prompts[start : start + 32]],
                model.tokenizer.pad_token_id,
                model.model.device,
            )
            logits = model.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            parts.append(torch.log_softmax(logits[:, -1].float(), dim=-1))
    return torch.cat(parts)


def plain(
    model: ChatModel,
    candidates: list[Candidate],
    harmful: Prompts,
    harmless: Prompts,
    tokens: Sequence[int],
    settings: DirectionSettings,
) -> list[Candidate]:
    """Every candidate's three scores, then the thresholds; returns the kept ones."""
    base = next_token(model, harmless)
    kept = []
    for c in candidates:
        d = c.direction
        ablated = ablate(model.model, d.vector)
        c.ablation = refusal_scores(next_token(model, harmful, ablated), tokens).mean().item()
        steered = steer(model.model, d.layer, d.vector)
        c.addition = refusal_scores(next_token(model, harmless, steered), tokens).mean().item()
        without = next_token(model, harmless, ablate(model.model, d.vector))
        c.kl = (base.exp() * (base - without)).sum(-1).mean().item()
        late = d.layer >= int(model.layers * (1 - settings.drop_last_layers))
        if not late and c.addition >= settings.min_addition_score and c.kl <= settings.max_kl:
            kept.append(c)
    return kept


def main() -> None:
    """Print both medians, their ratio and the number of passes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--layers", default="6,12,18,24,29")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--min-addition-score", type=float, default=0.0)
    parser.add_argument("--max-kl", type=float, default=0.1)
    arguments = parser.parse_args()
    silence_libraries(debug=False)
    model = load_model(arguments.model)
    sets = {name: load_prompt_set(name) for name in ("harmful", "harmless")}
    train, validation = (
        [
            [p.messages for p in getattr(sets[name], part)][: arguments.prompts]
            for name in ("harmful", "harmless")
        ]
        for part in ("train", "validation")
    )
    positions = len(model.chat.post_instruction_ids())
    means = [prompt_means(model, prompts, positions) for prompts in train]
    difference = (means[0] - means[1]).float()
    tokens = refusal_first_tokens(model.chat)
    settings = DirectionSettings(
        min_addition_score=arguments.min_addition_score, max_kl=arguments.max_kl
    )
    passes = 0
    counted = module.next_token_log_probs

    def count(*args, **named):  # type: ignore[no-untyped-def]
        nonlocal passes
        passes += 1
        return counted(*args, **named)

    module.next_token_log_probs = count

    def fresh() -> list[Candidate]:
        return [
            Candidate(Direction(difference[p, layer], layer, 1.0, "bench", p - positions))
            for layer in map(int, arguments.layers.split(","))
            for p in range(positions)
        ]

    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        kept = plain(model, fresh(), *validation, tokens, settings)
        times["plain"].append(time.perf_counter() - start)
        passes, made = 0, fresh()
        start = time.perf_counter()
        score_candidates(model, made, *validation, tokens, settings)
        times["ours"].append(time.perf_counter() - start)
        ours = [c for c in made if not c.rejected]
        same = [(c.direction.layer, c.direction.position) for c in kept] == [
            (c.direction.layer, c.direction.position) for c in ours
        ]
        far = max(
            (abs(a.ablation - b.ablation) for a, b in zip(kept, ours, strict=False)), default=0
        )
        print(
            f"plain {times['plain'][-1]:.1f} s, ours {times['ours'][-1]:.1f} s,"
            f" {len(kept)} kept by plain, {len(ours)} by ours,"
            f" {'the same' if same else 'NOT the same'}, ablation scores differ by {far:.3f}",
            flush=True,
        )
    medians = {name: statistics.median(values) for name, values in times.items()}
    total = len(fresh())
    print(
        f"{arguments.model}, {total} candidates, {arguments.prompts} prompts of each kind:"
        f" plain {medians['plain']:.1f} s ({3 * total + 1} passes), ours {medians['ours']:.1f} s"
        f" ({passes} passes), ratio {medians['plain'] / medians['ours']:.1f}"
    )


if __name__ == "__main__":
    main()
