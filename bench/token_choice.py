"""Which tokens to choose: how much of what the teacher changes lies on S, for S of several sizes.

    python bench/token_choice.py RUN [--counts 10,50,200,1000] [--covered 0.5,0.7,0.8,0.9]
        [--prompts 24] [--seed 0]

RUN is a finished run, for its direction, teacher and student. S is chosen by each rule on the
teacher's own continuations of one half of the harmful validation prompts. *Covered* is the share of
a divergence to the teacher that lies on S, on the other half: of the base on the teacher's
continuations, of the base on its own answers (what the first update sees) and of the student on its
own (what is left at the end). Both divergences are sums over tokens of terms that are never
negative, so that a share has a meaning:

    reverse: sum over v of  p log(p / p_t) - p + p_t        p the base or the student
    forward: sum over v of  p_t log(p_t / p) - p_t + p

As in `safesteer tokens`, special tokens, tokens that the teacher hardly ever says and positions
after the base would have ended its turn are left out of the choice, and nothing of the measuring.

Rules, each a score of a token summed over positions: `vote` (published), `mass` |p_t - p_0|,
`reverse` and `forward` the token's own term, `weighted` p_t log(p_t / p_0), `floor` |p_t - p_0|
where |log(p_t / p_0)| > 1, `contrast` the mass on harmful less that on harmless prompts, `best`
the token's own term on the very text that is measured: no set of that size covers more;
`mass by position` a set of its own, by mass, for each position of an answer.

The second table is for a K that is not fixed: how many tokens `vote` and `mass` take until they
cover a share of the forward divergence of the base on the text that they choose on, and what they
then cover of the text that is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from safesteer.cli.silence import silence_libraries
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
Sums = dict[str, torch.Tensor]  # of SCORES and of the teacher's probability, [H, V]


@torch.no_grad()
def compare(
    prompts: Sequence[Sequence[Message]],
    teacher: ModelVariant,
    model: ModelVariant,
    writer: ModelVariant,
    seed: int,
    horizon: int,
    until_end: bool = False,
) -> Sums:
    """Sums over what `writer` samples, where `model` is compared to `teacher`, by position.

    `until_end` leaves out positions after those where the model would have ended its turn. The
    teacher's probability is divided by the number of all positions.
    """
    torch.manual_seed(seed)
    samples = [list(messages) for messages in prompts for _ in range(SAMPLES)]

    def read_by(variant: ModelVariant) -> list[list[int]]:
        reader = variant.teacher or Teacher()
        return [variant.model.chat.ids(reader.messages(messages)) for messages in samples]

    temperature = teacher.teacher.temperature if teacher.teacher else 1.0
    with writer.speaking():
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
        with variant.speaking():
            hidden.append(completion_states(variant.runner, read_by(variant), tails, pad_id))
    head, teacher_head = OutputHead.of(model.runner), OutputHead.of(teacher.runner).at(temperature)
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
    """By what a rule orders the tokens; equal votes by the teacher's probability."""
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


def main() -> None:
    """Print a table of shares, and the first tokens of each rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--counts", default="10,50,200,1000")
    parser.add_argument("--covered", default="0.5,0.7,0.8,0.9", help="for a K that is not fixed")
    parser.add_argument("--prompts", type=int, default=24, help="of each half")
    parser.add_argument("--horizon", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    silence_libraries(debug=False)
    contents = RunArtifacts(RunDirectory.load(arguments.run))
    aligned, teacher, base = (contents.variant(name) for name in ("aligned", "teacher", "base"))
    validation = {name: [p.messages for p in s.validation] for name, s in contents.prompts.items()}
    half = arguments.prompts
    chosen_on, measured_on = validation["harmful"][:half], validation["harmful"][half : 2 * half]

    def made(
        prompts: Sequence[Sequence[Message]], model: ModelVariant, writer: ModelVariant, **cut: bool
    ) -> Sums:
        return compare(prompts, teacher, model, writer, arguments.seed, arguments.horizon, **cut)

    harmful = made(chosen_on, base, teacher, until_end=True)
    harmless = made(validation["harmless"][:half], base, teacher, until_end=True)
    allowed = eligible(contents.model, contents.settings.tokens, harmful["probability"].sum(0))
    orders = {
        rule: score(rule, harmful, harmless).where(allowed, -torch.inf) for rule in RULES[:-1]
    }
    measured = {
        "base, teacher's text": made(measured_on, base, teacher),
        "base, its own": made(measured_on, base, base),
        "student, its own": made(measured_on, aligned, aligned),
    }
    columns = [f"{name}: {kind}" for name in measured for kind in ("reverse", "forward")]

    def cells(rule: str, count: int) -> str:
        shares = [
            covered(orders.get(rule, sums[kind].sum(0)), sums[kind], count)
            for sums in measured.values()
            for kind in ("reverse", "forward")
        ]
        return " | ".join(f"{share:.0%}" for share in shares)

    print("| rule | K | " + " | ".join(columns) + " |\n|---|---|" + "---|" * len(columns))
    for rule in RULES:
        for count in map(int, arguments.counts.split(",")):
            print(f"| {rule} | {count} | {cells(rule, count)} |")
    print("\n| rule | covers | K | " + " | ".join(columns) + " |")
    print("|---|---|---|" + "---|" * len(columns))
    chosen_from = harmful["forward"].sum(0)
    for rule in ("vote", "mass"):
        places = orders[rule].argsort(descending=True)
        shares = chosen_from[places].cumsum(0) / chosen_from.sum()
        reachable = shares[int(allowed.sum()) - 1]
        for share in map(float, arguments.covered.split(",")):
            if share > reachable:
                print(
                    f"| {rule} | {share:.0%} | not by all {int(allowed.sum())} that may be chosen |"
                )
                continue
            count = int((shares < share).sum()) + 1
            print(f"| {rule} | {share:.0%} | {count} | {cells(rule, count)} |")
    print()
    for rule in RULES[:-1]:
        if rule != BY_POSITION:
            first = orders[rule].topk(12).indices.tolist()
            words = ", ".join(repr(base.model.tokenizer.decode([i])) for i in first)
            print(f"- `{rule}`: {words}")


if __name__ == "__main__":
    main()
