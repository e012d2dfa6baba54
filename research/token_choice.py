"""Rules for the safety tokens: how much of the teacher's change lies on S, for several sizes.

    python -m research.token_choice RUN [--counts 10,50,200,1000] [--covered 0.5,0.7,0.8,0.9]
        [--prompts 24] [--seed 0]

RUN is a finished run, for its direction, teacher and student. Each rule chooses S on the teacher's
continuations of one half of the harmful validation prompts. *Covered* is the share of a divergence
to the teacher that lies on S, on the other half: of the base on the teacher's continuations, of the
base on its own answers (as in the first step) and of the student on its own (what is left at the
end). Both divergences are sums of terms that are never negative:

    reverse: sum over v of  p log(p / p_t) - p + p_t        p the base or the student
    forward: sum over v of  p_t log(p_t / p) - p_t + p

As in `safesteer tokens`, the choice skips special tokens, tokens of negligible probability under
the teacher, and positions after the base would have ended its turn; the measurement skips none.

Rules, each a score of a token summed over positions: `vote` (published), `mass` |p_t - p_0|,
`reverse` and `forward` the token's own term, `weighted` p_t log(p_t / p_0), `floor` |p_t - p_0|
where |log(p_t / p_0)| > 1, `contrast` the mass on harmful less that on harmless prompts, `best` the
token's own term on the measured text itself, an upper bound, and `mass by position` an S of its
own, by mass, for each position of an answer.

Prints the shares; then, for a K that varies, how many tokens `vote` and `mass` take until they
cover a share of the base's forward divergence on the text that they choose on, and their share of
the measured text; then the first tokens of each rule.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench.command_line import names, numbers, run_script
from bench.tables import table_head, table_row
from safesteer.inference.variant import ModelVariant
from safesteer.models.chat import Message
from safesteer.models.generate import Decoding, end_of_turn_ids, generate
from safesteer.models.hidden_states import completion_states
from safesteer.models.lm_head import OutputHead
from safesteer.runs.artifacts import RunArtifacts
from safesteer.runs.directory import RunDirectory
from safesteer.safety_tokens import eligible
from safesteer.teacher import Teacher

SCORES = ("vote", "mass", "reverse", "forward", "weighted", "floor")
BY_POSITION = "mass by position"
RULES = (*SCORES, "contrast", BY_POSITION, "best")
SAMPLES, INNER = 2, 200
Prompts = Sequence[Sequence[Message]]
Sums = dict[str, torch.Tensor]  # of SCORES and of the teacher's probability, [H, V]


@torch.no_grad()
def compare(
    prompts: Prompts,
    teacher: ModelVariant,
    model: ModelVariant,
    writer: ModelVariant,
    seed: int,
    horizon: int,
    until_end: bool = False,
) -> Sums:
    """Sums over samples of `writer` that compare `model` to `teacher`, by position.

    `until_end` skips positions after the one where the model would have ended its turn. The
    teacher's probability is divided by the number of all positions.
    """
    torch.manual_seed(seed)
    samples = [list(messages) for messages in prompts for _ in range(SAMPLES)]

    def read_by(variant: ModelVariant) -> list[list[int]]:
        reader = variant.teacher or Teacher()
        return [variant.model.chat.ids(reader.messages(messages)) for messages in samples]

    temperature = teacher.teacher.temperature if teacher.teacher else 1.0
    with writer.active():
        tails = generate(
            writer.runner,
            writer.model.tokenizer,
            read_by(writer),
            Decoding(horizon, temperature if writer is teacher else 1.0),
            batch_size=32,
        )
    pad_id = model.model.tokenizer.pad_token_id
    hidden = []
    for variant in (teacher, model):
        with variant.active():
            hidden.append(completion_states(variant.runner, read_by(variant), tails, pad_id))
    head, teacher_head = (
        OutputHead.of(model.runner),
        OutputHead.of(teacher.runner).with_temperature(temperature),
    )
    ends = torch.tensor(end_of_turn_ids(model.model.model, model.model.tokenizer))
    names = (*SCORES, "probability")
    shape = (horizon, head.vocabulary)
    sums = {name: torch.zeros(shape, dtype=torch.float64) for name in names}
    positions = 0
    for states_t, states_p in zip(*hidden, strict=True):
        where = torch.ones(len(states_p), dtype=torch.bool)
        if until_end:
            ended = torch.isin(head.logits(states_p).argmax(-1), ends).long()
            where = ended.cumsum(0) - ended == 0
        log_t = torch.log_softmax(teacher_head.logits(states_t[where]), dim=-1)
        log_p = torch.log_softmax(head.logits(states_p[where]), dim=-1)
        ratio, p_t, p = log_t - log_p, log_t.exp(), log_p.exp()
        difference = (p_t - p).abs()
        votes = torch.zeros_like(p)
        votes.scatter_(-1, ratio.topk(INNER, dim=-1).indices, 1.0)
        terms = {
            "vote": votes,
            "mass": difference,
            "reverse": -p * ratio - p + p_t,
            "forward": p_t * ratio - p_t + p,
            "weighted": p_t * ratio,
            "floor": difference * (ratio.abs() > 1),
            "probability": p_t,
        }
        positions += int(where.sum())
        place = where.nonzero().flatten()
        for rule, term in terms.items():
            sums[rule].index_add_(0, place, term.double())
    sums["probability"] /= positions
    return sums


def score(rule: str, harmful: Sums, harmless: Sums) -> torch.Tensor:  # [V], or [H, V]
    """The score by which a rule orders tokens; equal votes by the teacher's probability."""
    if rule == BY_POSITION:
        return harmful["mass"]
    if rule == "contrast":
        return (harmful["mass"] - harmless["mass"]).sum(0)
    return (harmful[rule] + (harmful["probability"] if rule == "vote" else 0)).sum(0)


def covered(order: torch.Tensor, terms: torch.Tensor, count: int) -> float:
    """The share of `terms` [H, V] on the first `count` tokens of `order`, [V] or [H, V]."""
    if order.dim() == 1:
        return float(terms.sum(0)[order.topk(count).indices].sum() / terms.sum())
    return float(terms.gather(-1, order.topk(count, dim=-1).indices).sum() / terms.sum())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run_folder", metavar="RUN", type=Path)
    parser.add_argument("--counts", default="10,50,200,1000")
    parser.add_argument("--covered", default="0.5,0.7,0.8,0.9", help="for a K that varies")
    parser.add_argument("--prompts", type=int, default=24, help="of each half")
    parser.add_argument("--horizon", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> None:
    """Print two tables of shares, and the first tokens of each rule."""
    finished = RunArtifacts(RunDirectory.load(arguments.run_folder))
    aligned, teacher, base = (finished.variant(name) for name in ("aligned", "teacher", "base"))
    validation = {name: [p.messages for p in s.validation] for name, s in finished.prompts.items()}
    half = arguments.prompts
    chosen_on, measured_on = validation["harmful"][:half], validation["harmful"][half : 2 * half]

    def sums(prompts: Prompts, model: ModelVariant, writer: ModelVariant, **cut: bool) -> Sums:
        return compare(prompts, teacher, model, writer, arguments.seed, arguments.horizon, **cut)

    harmful = sums(chosen_on, base, teacher, until_end=True)
    harmless = sums(validation["harmless"][:half], base, teacher, until_end=True)
    allowed = eligible(finished.model, finished.settings.tokens, harmful["probability"].sum(0))
    orders = {
        rule: score(rule, harmful, harmless).where(allowed, -torch.inf) for rule in RULES[:-1]
    }
    measured = {
        "base, teacher's text": sums(measured_on, base, teacher),
        "base, its own": sums(measured_on, base, base),
        "student, its own": sums(measured_on, aligned, aligned),
    }
    columns = [f"{name}: {kind}" for name in measured for kind in ("reverse", "forward")]

    def shares(rule: str, count: int) -> list[str]:
        return [
            f"{covered(orders.get(rule, found[kind].sum(0)), found[kind], count):.0%}"
            for found in measured.values()
            for kind in ("reverse", "forward")
        ]

    print(table_head("rule", "K", *columns))
    for rule in RULES:
        for count in numbers(arguments.counts):
            print(table_row(rule, count, *shares(rule, count)))
    print("\n" + table_head("rule", "covers", "K", *columns))
    wanted = [float(share) for share in names(arguments.covered)]
    print_varying(orders, harmful["forward"].sum(0), int(allowed.sum()), wanted, shares)
    print()
    for rule in RULES[:-1]:
        if rule != BY_POSITION:
            first = orders[rule].topk(12).indices.tolist()
            words = ", ".join(repr(base.model.tokenizer.decode([i])) for i in first)
            print(f"- `{rule}`: {words}")


def print_varying(
    orders: dict[str, torch.Tensor],
    chosen_from: torch.Tensor,  # [V]
    allowed: int,
    wanted: Sequence[float],
    shares: Callable[[str, int], list[str]],
) -> None:
    """Print the rows of the table for a K that varies."""
    for rule in ("vote", "mass"):
        places = orders[rule].argsort(descending=True)
        reached = chosen_from[places].cumsum(0) / chosen_from.sum()
        for share in wanted:
            if share > reached[allowed - 1]:
                print(table_row(rule, f"{share:.0%}", f"not by all {allowed} allowed tokens"))
                continue
            count = int((reached < share).sum()) + 1
            print(table_row(rule, f"{share:.0%}", count, *shares(rule, count)))


if __name__ == "__main__":
    run_script("research.token_choice")
