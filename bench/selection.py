"""Choosing a direction: the published procedure done plainly, against ours.

    python bench/selection.py [MODEL] [--prompts 16] [--layers 5] [--positions 3] [--repeats 3]

Candidates are the differences of means at the last `--positions` post-instruction positions of
`--layers` layers, spread evenly over the model. `plain` filters the training prompts, takes the
means in a second pass, and gives every candidate its three scores, each from a pass over the
validation prompts that projects all positions, in batches of 32; `ours` is `means_of_kept` and
`score_candidates`. They take turns. How much ours can leave out depends on how many candidates each
test rejects, so it is run with three kinds of bounds:

    published   a refusal score of at least 0 and a KL of at most 0.1
    middle      at the medians of the plain scores: half pass the first, half of these the second
    none        all pass (but for the last layers): nothing can be left out

The built-in model hardly refuses at the first token, so the filter's answer is not used, and with
published bounds nothing may be left to choose. Checked each time: means, every score that both made
(to 1e-4), and the winner, that with the lowest ablation score. Printed: medians, ratios, and the
work in tokens times blocks, against the least that gives these scores: no padding, nothing twice.
Fails if anything differs. The default size takes about 6 minutes on 2 quiet cores.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from safesteer.cli.silence import silence_libraries
from safesteer.config.settings import DirectionSettings
from safesteer.direction.activations import means_of_kept
from safesteer.direction.candidates import Candidate, refusal_scores, score_candidates
from safesteer.direction.refusal_tokens import refusal_first_tokens
from safesteer.direction.vector import Direction
from safesteer.models.chat import Message, pad_left
from safesteer.models.layers import find_blocks
from safesteer.models.lm_head import OutputHead
from safesteer.models.load import ChatModel, load_model
from safesteer.models.steering import ablate, steer
from safesteer.prompts import load_prompt_set

Prompts = Sequence[Sequence[Message]]
_NEAR = 1e-4


@dataclass
class Bench:
    """A model, its prompts, and what the two sides are timed on."""

    model: ChatModel
    train: list[Prompts]  # harmful, harmless
    validation: list[Prompts]
    positions: int
    layers: list[int]
    tokens: list[int]

    def batches(self, prompts: Prompts) -> list[tuple[torch.Tensor, torch.Tensor]]:
        pad = self.model.tokenizer.pad_token_id
        return [
            pad_left([self.model.chat.ids(m) for m in prompts[start : start + 32]], pad)
            for start in range(0, len(prompts), 32)
        ]

    @torch.no_grad()
    def next_token(
        self, prompts: Prompts, hook: AbstractContextManager[None] | None = None
    ) -> torch.Tensor:  # [N, V]
        """The last row of all logits of the prompts."""
        parts = []
        with hook or nullcontext():
            for ids, mask in self.batches(prompts):
                logits = self.model.model(
                    input_ids=ids, attention_mask=mask, use_cache=False
                ).logits
                parts.append(torch.log_softmax(logits[:, -1].float(), dim=-1))
        return torch.cat(parts)

    @torch.no_grad()
    def plain_means(self) -> torch.Tensor:  # [P, L, D]
        """A pass that filters, and one for the means of all layers; nothing is dropped."""
        means = []
        for prompts in self.train:
            refusal_scores(self.next_token(prompts), self.tokens)
            sums: torch.Tensor | float = 0.0
            for ids, mask in self.batches(prompts):
                states = self.model.model(
                    input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True
                ).hidden_states[: self.model.layers]
                last = torch.stack([state[:, -self.positions :] for state in states])
                sums = sums + last.double().sum(1)
            means.append(sums / len(prompts))
        return (means[0] - means[1]).transpose(0, 1)

    def our_means(self) -> torch.Tensor:  # [P, L, D]
        """The same from one pass."""
        head = OutputHead.of(self.model.model)

        def keep(last: torch.Tensor) -> torch.Tensor:
            logits = head.logits(last.contiguous())
            scores = refusal_scores(torch.log_softmax(logits, dim=-1), self.tokens)
            return torch.ones_like(scores, dtype=torch.bool)

        means = [means_of_kept(self.model, p, self.positions, keep)[0] for p in self.train]
        return means[0] - means[1]

    def candidates(self, difference: torch.Tensor) -> list[Candidate]:
        vectors = difference.float()
        return [
            Candidate(Direction(vectors[p, layer], layer, 1.0, "bench", p - self.positions))
            for layer in self.layers
            for p in range(self.positions)
        ]

    def plain_scores(self, candidates: list[Candidate]) -> None:
        """Every candidate's three scores."""
        model, (harmful, harmless) = self.model.model, self.validation
        base = self.next_token(harmless)
        for c in candidates:
            d = c.direction
            without = self.next_token(harmful, ablate(model, d.vector))
            c.ablation = refusal_scores(without, self.tokens).mean().item()
            added = self.next_token(harmless, steer(model, d.layer, d.vector))
            c.addition = refusal_scores(added, self.tokens).mean().item()
            ablated = self.next_token(harmless, ablate(model, d.vector))
            c.kl = (base.exp() * (base - ablated)).sum(-1).mean().item()

    def least_work(self, candidates: list[Candidate]) -> int:
        """Tokens times blocks that the scores of these candidates need."""
        lengths = []
        for prompts in self.validation:
            rendered = [self.model.chat.ids(messages) for messages in prompts]
            alike = 0
            while len({ids[alike] for ids in rendered}) == 1:
                alike += 1
            lengths.append(alike + sum(len(ids) - alike for ids in rendered))
        harmful, harmless = lengths
        depth = self.model.layers
        work = harmless * depth  # the unedited model
        for c in candidates:
            work += harmless * (depth - c.direction.layer) * (c.addition is not None)
            work += harmless * depth * (c.kl is not None)
            work += harmful * depth * (c.ablation is not None)
        return work


def bounds_of(kind: str, candidates: list[Candidate], late: int) -> DirectionSettings:
    """The thresholds; for "middle" from the plain scores of the candidates below layer `late`."""
    if kind == "published":
        return DirectionSettings()
    if kind == "none":
        return DirectionSettings(min_addition_score=-1e9, max_kl=1e9)
    early = [c for c in candidates if c.direction.layer < late]
    least = _between(sorted((c.addition for c in early), reverse=True))
    most = _between(sorted(c.kl for c in early if c.addition >= least))
    return DirectionSettings(min_addition_score=least, max_kl=most)


def _between(values: list[float]) -> float:
    """A bound that half of the sorted values, rounded up, are on the better side of."""
    half = (len(values) + 1) // 2
    return (values[half - 1] + values[half]) / 2 if half < len(values) else values[-1]


def winner(candidates: list[Candidate], settings: DirectionSettings, late: int) -> str:
    """Where the chosen candidate was taken."""
    kept = [
        c
        for c in candidates
        if c.direction.layer < late
        and c.addition is not None
        and c.addition >= settings.min_addition_score
        and c.kl is not None
        and c.kl <= settings.max_kl
    ]
    best = min(kept, key=lambda c: c.ablation, default=None)
    if best is None:
        return "none"
    return f"layer {best.direction.layer}, position {best.direction.position}"


def count_work(model: ChatModel) -> list[int]:
    """A counter of tokens times blocks that ran; a skipped block's inside does not run."""
    counter = [0]

    def count(module: torch.nn.Module, args: tuple) -> None:
        counter[0] += args[0].shape[:-1].numel()

    for block in find_blocks(model.model):
        list(block.children())[-1].register_forward_pre_hook(count)
    return counter


def product_speed(block: torch.nn.Module, tokens: int = 1024) -> float:
    """Floating-point operations per second of the block's matrix products, one after the other."""
    weights = [w for w in block.parameters() if w.dim() == 2]
    inputs = [torch.randn(tokens, w.shape[1]).to(w.dtype) for w in weights]
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        for x, w in zip(inputs, weights, strict=True):
            torch.nn.functional.linear(x, w)
        seconds.append(time.perf_counter() - start)
    return 2 * tokens * sum(w.numel() for w in weights) / statistics.median(seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=16, help="of each kind")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--positions", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bounds", default="published,middle,none")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    silence_libraries(debug=False)
    model = load_model(arguments.model)
    model.model.to(getattr(torch, arguments.dtype))
    sets = [load_prompt_set(name) for name in ("harmful", "harmless")]
    train, validation = (
        [[p.messages for p in getattr(s, part)][: arguments.prompts] for s in sets]
        for part in ("train", "validation")
    )
    depth = model.layers
    bench = Bench(
        model,
        train,
        validation,
        min(arguments.positions, len(model.chat.post_instruction_ids())),
        [int((i + 0.5) * depth / arguments.layers) for i in range(arguments.layers)],
        refusal_first_tokens(model.chat),
    )
    late = int(depth * (1 - DirectionSettings().drop_last_layers))
    counter = count_work(model)
    times: dict[str, list[float]] = defaultdict(list)
    work: dict[str, int] = {}
    problems: list[str] = []

    def timed(name: str, run: Callable[[], object]) -> object:
        counter[0] = 0
        start = time.perf_counter()
        result = run()
        times[name].append(time.perf_counter() - start)
        work[name] = counter[0]
        print(f"{name}: {times[name][-1]:.1f} s", file=sys.stderr, flush=True)
        return result

    def near(what: str, one: torch.Tensor, other: torch.Tensor) -> float:
        far = (one - other).abs().max().item()
        if arguments.dtype == "float32" and not far <= _NEAR:
            problems.append(f"{what} differ by {far:.1e}")
        return far

    rows: dict[str, str] = {}
    kinds = arguments.bounds.split(",")
    for _ in range(arguments.repeats):
        difference = timed("plain means", bench.plain_means)
        ours = timed("our means", bench.our_means)
        scale = difference.norm(dim=-1).max()
        near("means", difference / scale, ours / scale)
        plain = bench.candidates(difference)
        timed("plain scores", lambda plain=plain: bench.plain_scores(plain))
        for kind in kinds:
            settings = bounds_of(kind, plain, late)
            made = bench.candidates(difference)
            timed(
                kind,
                lambda made=made, settings=settings: score_candidates(
                    model, made, *validation, bench.tokens, settings
                ),
            )
            far = 0.0
            for score in ("addition", "kl", "ablation"):
                both = [
                    (getattr(a, score), getattr(b, score))
                    for a, b in zip(plain, made, strict=True)
                    if getattr(b, score) is not None
                ]
                if both:
                    one, other = torch.tensor(both, dtype=torch.float64).T
                    far = max(far, near(f"{kind} bounds: {score}", one, other))
            chosen = winner(plain, settings, late), winner(made, settings, late)
            if chosen[0] != chosen[1]:
                problems.append(f"{kind} bounds: plain chooses {chosen[0]}, ours {chosen[1]}")
            counts = [sum(getattr(c, s) is not None for c in made) for s in ("addition", "kl")]
            kept = sum(not c.rejected for c in made)
            rows[kind] = (
                f"{counts[0]}, {counts[1]}, {kept} | {chosen[1]} | {far:.0e} |"
                f" {work[kind] / bench.least_work(made):.2f}"
            )

    total = len(bench.layers) * bench.positions
    print(
        f"{arguments.model}, {arguments.dtype}, {torch.get_num_threads()} threads; layers"
        f" {bench.layers} of {depth} x {bench.positions} positions = {total} candidates;"
        f" {arguments.prompts} training and {arguments.prompts} validation prompts of each kind;"
        f" medians of {arguments.repeats} alternating runs.\n"
    )
    median = {name: statistics.median(values) for name, values in times.items()}
    print("| | plain, s | ours, s | ratio | work, plain to ours |")
    print("|---|---|---|---|---|")
    pairs = [("filter and means", "plain means", "our means")]
    pairs += [(f"scores, bounds: {kind}", "plain scores", kind) for kind in kinds]
    for label, one, other in pairs:
        print(
            f"| {label} | {median[one]:.1f} | {median[other]:.1f} |"
            f" {median[one] / median[other]:.1f} | {work[one] / work[other]:.1f} |"
        )
    print("\n| bounds | given addition, KL, ablation | chosen by both | apart | work / least |")
    print("|---|---|---|---|---|")
    for kind in kinds:
        print(f"| {kind} | {rows[kind]} |")
    block = find_blocks(model.model)[0]
    size = 2 * sum(w.numel() for w in block.parameters() if w.dim() == 2)
    speed = product_speed(block)
    print(f"\nMatrix products alone: {speed / 1e9:.0f} GFLOP/s; of it reached by", end=" ")
    print(
        ", ".join(
            f"{name} {work[name] * size / median[name] / speed:.0%}"
            for name in ("plain scores", *kinds)
        )
        + " (blocks only, without the output matrix and attention)."
    )
    if problems:
        sys.exit("DIFFERENT: " + "; ".join(dict.fromkeys(problems)))


if __name__ == "__main__":
    main()
