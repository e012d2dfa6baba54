"""Choice of a direction: the published procedure done plainly, against ours.

    python -m bench.speed direction [MODEL] [--prompts 16] [--layers 5] [--positions 3]
        [--repeats 3]

Candidates are the differences of means at the last `--positions` post-instruction positions of
`--layers` layers, spread evenly over the model. `plain` filters the training prompts, takes the
means in a second pass, and computes each of the three scores of a candidate in a pass of its own
over the validation prompts, in batches of 32; `ours` is `prompt_means` and `score_candidates`.
They take turns. How much ours can skip depends on how many candidates each test rejects, so it runs
with three kinds of bounds:

    published   a refusal score of at least 0 and a KL of at most 0.1
    middle      the medians of the plain scores: half pass the first, half of these the second
    none        all pass but for the last layers: nothing can be skipped

The built-in model hardly refuses at the first token, so the filter's answer is not used, and with
published bounds no candidate may remain. Checked each time: means, every score that both computed
(to 1e-4), and the choice, which is the lowest ablation score. Prints medians, ratios, and the work
in tokens times blocks against the least that gives these scores: no padding, nothing twice. Fails
if anything differs. The default size takes about 6 minutes on 2 idle cores.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from bench.command_line import names
from bench.tables import table_head, table_row
from bench.timing import Found, timed
from safesteer.config.settings import DirectionSettings
from safesteer.direction.activations import prompt_means
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
class Sides:
    """The plain and our implementation, on one model and its prompts.

    Attributes:
        train: harmful and harmless training prompts.
        validation: harmful and harmless validation prompts.
        positions: how many of the last prompt tokens give candidates.
        layers: the layers that give candidates.
        tokens: the refusal tokens of the score.
    """

    model: ChatModel
    train: list[Prompts]
    validation: list[Prompts]
    positions: int
    layers: list[int]
    tokens: list[int]

    @property
    def late(self) -> int:
        """The first of the last layers, which are never chosen."""
        return int(self.model.layers * (1 - DirectionSettings().advanced.drop_last_layers))

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

        means = [prompt_means(self.model, p, self.positions, keep)[0] for p in self.train]
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


@dataclass
class Record:
    """Seconds and work of everything that was timed, and differences between the two sides.

    Attributes:
        counter: tokens times blocks that ran, see `count_work`.
        strict: whether results must be equal to 1e-4; in bfloat16 they are not.
    """

    counter: list[int]
    strict: bool
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    work: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def timed(self, name: str, work: Callable[[], Found]) -> Found:
        """What `work` returns; its seconds and its tokens times blocks are kept."""
        self.counter[0] = 0
        found, seconds = timed(work)
        self.seconds[name].append(seconds)
        self.work[name] = self.counter[0]
        print(f"{name}: {seconds:.1f} s", file=sys.stderr, flush=True)
        return found

    def distance(self, what: str, one: torch.Tensor, other: torch.Tensor) -> float:
        """The largest difference of two tensors; noted as a problem if it is too large."""
        apart = (one - other).abs().max().item()
        if self.strict and not apart <= _NEAR:
            self.problems.append(f"{what} differ by {apart:.1e}")
        return apart


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=16, help="of each kind")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--positions", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bounds", default="published,middle,none")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])


def run(arguments: argparse.Namespace) -> None:
    """Print the tables; exit with an error if the two sides differ."""
    sides = load_sides(arguments)
    record = Record(count_work(sides.model), strict=arguments.dtype == "float32")
    kinds = names(arguments.bounds)
    rows: dict[str, list[str]] = {}
    for _ in range(arguments.repeats):
        difference = record.timed("plain means", sides.plain_means)
        ours = record.timed("our means", sides.our_means)
        scale = difference.norm(dim=-1).max()
        record.distance("means", difference / scale, ours / scale)
        plain = sides.candidates(difference)
        record.timed("plain scores", lambda plain=plain: sides.plain_scores(plain))
        for kind in kinds:
            rows[kind] = compare(sides, record, kind, plain, difference)
    total = len(sides.layers) * sides.positions
    print(
        f"{arguments.model}, {arguments.dtype}, {torch.get_num_threads()} threads; layers"
        f" {sides.layers} of {sides.model.layers} x {sides.positions} positions = {total}"
        f" candidates; {arguments.prompts} training and {arguments.prompts} validation prompts of"
        f" each kind; medians of {arguments.repeats} alternating runs.\n"
    )
    seconds = {name: statistics.median(values) for name, values in record.seconds.items()}
    print(table_head("", "plain, s", "ours, s", "ratio", "work, plain to ours"))
    pairs = [("filter and means", "plain means", "our means")]
    pairs += [(f"scores, bounds: {kind}", "plain scores", kind) for kind in kinds]
    for label, one, other in pairs:
        times = seconds[one], seconds[other], seconds[one] / seconds[other]
        work = record.work[one] / record.work[other]
        print(table_row(label, *(f"{value:.1f}" for value in (*times, work))))
    columns = ("with addition, KL, ablation", "chosen by both", "apart", "work / least")
    print("\n" + table_head("bounds", *columns))
    for kind in kinds:
        print(table_row(kind, *rows[kind]))
    block = find_blocks(sides.model.model)[0]
    size = 2 * sum(w.numel() for w in block.parameters() if w.dim() == 2)
    speed = product_speed(block)
    reached = [
        f"{name} {record.work[name] * size / seconds[name] / speed:.0%}"
        for name in ("plain scores", *kinds)
    ]
    print(
        f"\nMatrix products alone: {speed / 1e9:.0f} GFLOP/s; of it reached by"
        f" {', '.join(reached)} (blocks only, without the output matrix and attention)."
    )
    if record.problems:
        sys.exit("DIFFERENT: " + "; ".join(dict.fromkeys(record.problems)))


def load_sides(arguments: argparse.Namespace) -> Sides:
    """The model in the chosen dtype, its prompts, and the layers of the candidates."""
    model = load_model(arguments.model)
    model.model.to(getattr(torch, arguments.dtype))
    sets = [load_prompt_set(name) for name in ("harmful", "harmless")]
    train, validation = (
        [[p.messages for p in getattr(s, part)][: arguments.prompts] for s in sets]
        for part in ("train", "validation")
    )
    return Sides(
        model,
        train,
        validation,
        min(arguments.positions, len(model.chat.post_instruction_ids())),
        [int((i + 0.5) * model.layers / arguments.layers) for i in range(arguments.layers)],
        refusal_first_tokens(model.chat),
    )


def compare(
    sides: Sides, record: Record, kind: str, plain: list[Candidate], difference: torch.Tensor
) -> list[str]:
    """Score the candidates our way under one kind of bounds; the cells of its row."""
    settings = bounds_of(kind, plain, sides.late)
    made = sides.candidates(difference)
    record.timed(
        kind,
        lambda: score_candidates(sides.model, made, *sides.validation, sides.tokens, settings),
    )
    apart = 0.0
    for score in ("addition", "kl", "ablation"):
        both = [
            (getattr(a, score), getattr(b, score))
            for a, b in zip(plain, made, strict=True)
            if getattr(b, score) is not None
        ]
        if both:
            one, other = torch.tensor(both, dtype=torch.float64).T
            apart = max(apart, record.distance(f"{kind} bounds: {score}", one, other))
    chosen = (choice(each, settings, sides.late) for each in (plain, made))
    by_plain, by_ours = chosen
    if by_plain != by_ours:
        record.problems.append(f"{kind} bounds: plain chooses {by_plain}, ours {by_ours}")
    counts = [sum(getattr(c, s) is not None for c in made) for s in ("addition", "kl")]
    counts.append(sum(not c.rejected for c in made))
    work = record.work[kind] / sides.least_work(made)
    return [", ".join(map(str, counts)), by_ours, f"{apart:.0e}", f"{work:.2f}"]


def bounds_of(kind: str, candidates: list[Candidate], late: int) -> DirectionSettings:
    """The thresholds; for "middle" from the plain scores of the candidates below layer `late`."""
    if kind == "published":
        return DirectionSettings()
    least, most = -1e9, 1e9
    if kind == "middle":
        early = [c for c in candidates if c.direction.layer < late]
        least = _between(sorted((c.addition for c in early), reverse=True))
        most = _between(sorted(c.kl for c in early if c.addition >= least))
    return DirectionSettings(advanced={"min_addition_score": least, "max_kl": most})


def _between(values: list[float]) -> float:
    """A bound that the better half of the sorted values passes."""
    half = (len(values) + 1) // 2
    return (values[half - 1] + values[half]) / 2 if half < len(values) else values[-1]


def choice(candidates: list[Candidate], settings: DirectionSettings, late: int) -> str:
    """Layer and position of the chosen candidate."""
    kept = [
        c
        for c in candidates
        if c.direction.layer < late
        and c.addition is not None
        and c.addition >= settings.advanced.min_addition_score
        and c.kl is not None
        and c.kl <= settings.advanced.max_kl
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
    """Floating-point operations per second of the block's matrix products in sequence."""
    weights = [w for w in block.parameters() if w.dim() == 2]
    inputs = [torch.randn(tokens, w.shape[1]).to(w.dtype) for w in weights]

    def products() -> None:
        for x, w in zip(inputs, weights, strict=True):
            torch.nn.functional.linear(x, w)

    seconds = []
    for _ in range(20):
        seconds.append(timed(products)[1])
    return 2 * tokens * sum(w.numel() for w in weights) / statistics.median(seconds)
