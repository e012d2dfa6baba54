"""Which tokens to choose: how much of what the teacher changes lies on S, for S of several sizes.

    python bench/token_choice.py RUN [--counts 10,50,200,1000] [--prompts 24] [--seed 0]

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
the token's own term on the very text that is measured: no set of that size covers more.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from safesteer.cli.silence import silence_libraries
from safesteer.contents import RunContents
from safesteer.models.chat import Message
from safesteer.models.generate import end_of_turn_ids, generate
from safesteer.models.head import OutputHead
from safesteer.runs import RunDirectory
from safesteer.speaker import Speaker
from safesteer.teacher import Teacher
from safesteer.tokens.select import eligible, hidden_at

SCORES = ("vote", "mass", "reverse", "forward", "weighted", "floor")
RULES = (*SCORES, "contrast", "best")
SAMPLES, INNER = 2, 200
Sums = dict[str, torch.Tensor]  # of SCORES and of the teacher's probability, [V]


@torch.no_grad()
def compare(
    prompts: Sequence[Sequence[Message]],
    teacher: Speaker,
    model: Speaker,
    writer: Speaker,
    seed: int,
    horizon: int,
    until_end: bool = False,
) -> Sums:
    """Sums over the positions of what `writer` samples, where `model` is compared to `teacher`.

    `until_end` leaves out positions after those where the model would have ended its turn. The
    teacher's probability is a mean.
    """
    torch.manual_seed(seed)
    samples = [list(messages) for messages in prompts for _ in range(SAMPLES)]

    def read_by(speaker: Speaker) -> list[list[int]]:
        reader = speaker.teacher or Teacher()
        return [speaker.model.chat.ids(reader.messages(messages)) for messages in samples]

    temperature = teacher.teacher.temperature if teacher.teacher else 1.0
    with writer.speaking():
        tails = generate(
            writer.runner,
            writer.model.tokenizer,
            read_by(writer),
            max_new_tokens=horizon,
            temperature=temperature if writer is teacher else 1.0,
        )
    hidden = []
    for speaker in (teacher, model):
        with speaker.speaking():
            found, mask = hidden_at(
                speaker.runner, speaker.model.tokenizer, read_by(speaker), tails
            )
        hidden.append(found)
    head, teacher_head = OutputHead.of(model.runner), OutputHead.of(teacher.runner).at(temperature)
    ends = torch.tensor(end_of_turn_ids(model.model.model, model.model.tokenizer))
    names = (*SCORES, "probability")
    sums = {name: torch.zeros(head.vocabulary, dtype=torch.float64) for name in names}
    positions = 0
    for row, where in enumerate(mask):
        if until_end:
            ended = torch.isin(head.logits(hidden[1][row]).argmax(-1), ends).long()
            where = where & (ended.cumsum(0) - ended == 0)
        log_t = torch.log_softmax(teacher_head.logits(hidden[0][row, where]), dim=-1)
        log_p = torch.log_softmax(head.logits(hidden[1][row, where]), dim=-1)
        ratio, p_t, p = log_t - log_p, log_t.exp(), log_p.exp()
        difference = (p_t - p).abs()
        top = ratio.topk(INNER, dim=-1).indices.flatten()
        sums["vote"] += torch.bincount(top, minlength=head.vocabulary)
        terms = {
            "mass": difference,
            "reverse": -p * ratio - p + p_t,
            "forward": p_t * ratio - p_t + p,
            "weighted": p_t * ratio,
            "floor": difference * (ratio.abs() > 1),
            "probability": p_t,
        }
        positions += int(where.sum())
        for rule, term in terms.items():
            sums[rule] += term.sum(0).double()
    sums["probability"] /= positions
    return sums


def score(rule: str, harmful: Sums, harmless: Sums) -> torch.Tensor:  # [V]
    """By what a rule orders the tokens; equal votes by the teacher's probability."""
    if rule == "contrast":
        return harmful["mass"] - harmless["mass"]
    return harmful[rule] + (harmful["probability"] if rule == "vote" else 0)


def main() -> None:
    """Print a table of shares, and the first tokens of each rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--counts", default="10,50,200,1000")
    parser.add_argument("--prompts", type=int, default=24, help="of each half")
    parser.add_argument("--horizon", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    silence_libraries(debug=False)
    contents = RunContents(RunDirectory.load(arguments.run))
    aligned, teacher, base = (contents.speaker(name) for name in ("aligned", "teacher", "base"))
    validation = {name: [p.messages for p in s.validation] for name, s in contents.prompts.items()}
    half = arguments.prompts
    chosen_on, measured_on = validation["harmful"][:half], validation["harmful"][half : 2 * half]

    def made(
        prompts: Sequence[Sequence[Message]], model: Speaker, writer: Speaker, **cut: bool
    ) -> Sums:
        return compare(prompts, teacher, model, writer, arguments.seed, arguments.horizon, **cut)

    harmful = made(chosen_on, base, teacher, until_end=True)
    harmless = made(validation["harmless"][:half], base, teacher, until_end=True)
    allowed = eligible(contents.model, contents.settings.tokens, harmful["probability"])
    measured = {
        "base, teacher's text": made(measured_on, base, teacher),
        "base, its own": made(measured_on, base, base),
        "student, its own": made(measured_on, aligned, aligned),
    }
    columns = [f"{name}: {kind}" for name in measured for kind in ("reverse", "forward")]
    print("| rule | K | " + " | ".join(columns) + " |\n|---|---|" + "---|" * len(columns))
    for rule in RULES:
        for count in map(int, arguments.counts.split(",")):
            cells = []
            for sums in measured.values():
                for kind in ("reverse", "forward"):
                    order = sums[kind]
                    if rule != "best":
                        order = score(rule, harmful, harmless).where(allowed, -torch.inf)
                    chosen = order.topk(count).indices
                    cells.append(float(sums[kind][chosen].sum() / sums[kind].sum()))
            print(f"| {rule} | {count} | " + " | ".join(f"{cell:.0%}" for cell in cells) + " |")
    print()
    for rule in RULES[:-1]:
        order = score(rule, harmful, harmless).where(allowed, -torch.inf)
        first = order.topk(12).indices.tolist()
        print(f"- `{rule}`: " + ", ".join(repr(base.model.tokenizer.decode([i])) for i in first))


if __name__ == "__main__":
    main()
