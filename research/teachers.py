"""Teachers side by side, without training: refusals and fluency of each.

    python -m research.teachers [OUTPUT.json] [--model ID] [--limit 50] [--only steering,gated]

Prints, on our validation prompts, the share of harmful, harmless and borderline requests, and of
harmful ones with the answer prefilled "Sure, here is", that each teacher refuses (offline judge,
greedy, 24 tokens), the perplexity of its answers under the base model relative to the base's own,
and the share of answers that loop. Teachers in OUTPUT.json are not measured again. Layers are those
of the built-in model.

Directions: `refuse-comply` (the recipe's source) and `reading`, the mean change that two refusals
in context make to the last prompt token of harmful prompts. `gated` uses the teacher only on
prompts whose projection on the difference of harmful and harmless training prompts exceeds that of
95% of harmless and borderline ones, and the base model on the others. `probe` gates by a linear
probe over the request (`bench.evidence.probe`). `null-space` steers each prompt by its own
strength, between 0 and 1 in steps of a fifth: a linear function of its last token that is about 1
on harmful training prompts and reads only the dimensions that harmless and borderline ones use
least (after AlphaSteer, Sheng et al. 2025, arXiv 2506.07022, which applies it at every position).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.command_line import names, run_script
from bench.tables import table_head, table_row
from safesteer.config.settings import DirectionSettings, ModelSettings
from safesteer.direction.activations import answer_means, prompt_means
from safesteer.direction.behavior import answer_nll
from safesteer.direction.vector import Direction
from safesteer.errors import InputError
from safesteer.evaluate.benchmarks.forms import PREFILL
from safesteer.files import read_json, write_json
from safesteer.judges.looping import is_looping
from safesteer.judges.refusal_patterns import judge_refusal
from safesteer.models.chat import Message, pad_left
from safesteer.models.generate import Decoding, generate
from safesteer.models.hidden_states import hidden_states
from safesteer.models.layers import find_blocks
from safesteer.models.load import ChatModel, load_model
from safesteer.models.steering import edit_block_input
from safesteer.prompts import PROMPT_SETS, load_prompt_set
from safesteer.teacher import Teacher, demonstrations

Prompts = Sequence[Sequence[Message]]
LAYERS = (9, 12, 15, 17)
TOKENS = 24
PLAIN = "the base model"
FITTED = 600  # harmful prompts, and as many harmless and borderline ones, for gates and null-space


@dataclass(frozen=True)
class Candidate:
    """A teacher, with a strength for each prompt.

    Attributes:
        teacher: its context and direction.
        strength: gives each prompt of a list a factor on the steering; at 0 the base model answers.
    """

    teacher: Teacher
    strength: Callable[[Prompts], torch.Tensor] | None = None

    def at(self, factor: float) -> Teacher:
        """The teacher at such a factor."""
        direction = self.teacher.direction
        if factor == 0:
            return Teacher()
        if factor == 1 or direction is None:
            return self.teacher
        weaker = replace(direction, coefficient=factor * direction.coefficient)
        return replace(self.teacher, direction=weaker)


class Laboratory:
    """The model, its prompts, and what the teachers are made of."""

    def __init__(self, model: ChatModel, limit: int) -> None:
        self.model = model
        self.probes: dict[int, Any] = {}  # {layer: its linear probe}
        sets = {name: load_prompt_set(name) for name in PROMPT_SETS}
        self.train = {name: [p.messages for p in found.train] for name, found in sets.items()}
        self.judged = {
            name: [p.messages for p in found.validation][:limit] for name, found in sets.items()
        }
        settings = DirectionSettings().advanced
        harmful = self.train["harmful"][:32]
        refusing, complying = (
            answer_means(model, harmful, openings)
            for openings in (settings.refusing_openings, settings.complying_openings)
        )
        self.refuse_comply = (refusing - complying).float()  # [L, D]
        reading = Teacher(None, demonstrations(2, refusals_only=True))
        harmful = self.train["harmful"][:128]
        taught = prompt_means(model, [reading.messages(m) for m in harmful], 1)[0][0]
        plain = prompt_means(model, harmful, 1)[0][0]
        self.reading = (taught - plain).float()  # [L, D]
        harmless = prompt_means(model, self.train["harmless"][:128], 1)[0][0]
        self.contrast = (plain - harmless).float()  # [L, D]
        self.of_harmful = self.last(self.train["harmful"][:FITTED])
        self.of_harmless = self.last(
            self.train["harmless"][: FITTED // 2] + self.train["borderline"][: FITTED // 2]
        )

    @torch.no_grad()
    def last(self, prompts: Prompts) -> dict[int, torch.Tensor]:  # {layer: [N, D]}
        """The residual stream of each prompt's last token at the input of the blocks LAYERS."""
        seen: dict[int, torch.Tensor] = {}
        kept: dict[int, list[torch.Tensor]] = {layer: [] for layer in LAYERS}

        def keep(layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
            def look(hidden: torch.Tensor) -> torch.Tensor:
                # Of the last pass, behind the common prefix of the rows.
                seen[layer] = hidden[:, -1].float().clone()
                return hidden

            return look

        rendered = [self.model.chat.ids(messages) for messages in prompts]
        blocks, pad = find_blocks(self.model.model), self.model.tokenizer.pad_token_id
        with ExitStack() as hooks:
            for layer in LAYERS:
                hooks.enter_context(edit_block_input(blocks[layer], keep(layer)))
            for start in range(0, len(rendered), 32):
                part = pad_left(rendered[start : start + 32], pad, self.model.model.device)
                hidden_states(self.model.model, *part)
                for layer, hidden in seen.items():
                    kept[layer].append(hidden)
        return {layer: torch.cat(parts) for layer, parts in kept.items()}

    def gate(self, layer: int) -> Callable[[Prompts], torch.Tensor]:
        """1 for a prompt whose projection on the contrast exceeds 95% of harmless ones; or 0."""
        axis = self.contrast[layer]
        bound = torch.quantile(self.of_harmless[layer] @ axis, 0.95)
        return lambda prompts: (self.last(prompts)[layer] @ axis > bound).float()

    def probe(self, layer: int, prompts: Prompts) -> torch.Tensor:
        """1 for a prompt that a linear probe over its request classifies as harmful; or 0."""
        from bench.evidence.probe import Probe  # needs scikit-learn

        if layer not in self.probes:
            self.probes[layer] = Probe(self.model, layer, self.train)
        return torch.tensor(self.probes[layer].scores(prompts) > 0).float()

    def null_space(self, layer: int, kept: float) -> Callable[[Prompts], torch.Tensor]:
        """The strength of `null-space`, from this share of the dimensions."""
        harmless, harmful = self.of_harmless[layer], self.of_harmful[layer]
        # Uncentered, as the function has no constant term.
        _, vectors = torch.linalg.eigh(harmless.double().T @ harmless.double())  # ascending
        free = vectors[:, : int(kept * len(vectors))].float()  # [D, F]
        seen = harmful @ free  # [N, F]
        # weights [F]: seen @ weights is about 1 on harmful prompts (ridge regression)
        ridge = 1e-2 * seen.pow(2).mean() * torch.eye(seen.shape[1])
        weights = torch.linalg.solve(seen.T @ seen / len(seen) + ridge, seen.mean(0))
        reads = free @ weights

        def strength(prompts: Prompts) -> torch.Tensor:
            return ((self.last(prompts)[layer] @ reads).clamp(0, 1) * 5).round() / 5

        return strength

    def teachers(self) -> dict[str, Candidate]:
        """All teachers by name."""

        def steering(layer: int, c: float, source: str = "refuse_comply") -> Direction:
            return Direction(getattr(self, source)[layer], layer, c, source)

        refusals = demonstrations(2, refusals_only=True)
        found = {PLAIN: Candidate(Teacher())}
        for layer in LAYERS:
            for c in (0.9, 1.1):
                found[f"steering, layer {layer}, c {c}"] = Candidate(Teacher(steering(layer, c)))
            for c in (1.0, 2.0):
                name = f"steering by reading, layer {layer}, c {c}"
                found[name] = Candidate(Teacher(steering(layer, c, "reading")))
        for c in (0.0, 0.2, 0.44, 0.7):
            found[f"two refusals, layer 17, c {c}"] = Candidate(
                Teacher(steering(17, c) if c else None, refusals)
            )
        for count in (2, 4, 8, 16):
            found[f"{count} demonstrations"] = Candidate(Teacher(None, demonstrations(count)))
        for c in (0.2, 0.44):
            found[f"4 demonstrations, layer 17, c {c}"] = Candidate(
                Teacher(steering(17, c), demonstrations(4))
            )
        for layer in LAYERS:
            found[f"gated at layer {layer}, two refusals, layer 17, c 0.44"] = Candidate(
                Teacher(steering(17, 0.44), refusals), self.gate(layer)
            )
        for layer in (14, 17):
            found[f"probe at layer {layer}, two refusals, layer 17, c 0.44"] = Candidate(
                Teacher(steering(17, 0.44), refusals), partial(self.probe, layer)
            )
        for layer in (12, 17):
            for kept in (0.3, 0.6, 0.9):
                found[f"null-space of {kept:.0%}, layer {layer}, c 1.1"] = Candidate(
                    Teacher(steering(layer, 1.1)), self.null_space(layer, kept)
                )
        return found

    def measure(self, candidate: Candidate) -> dict[str, Any]:
        """Rates of a teacher, as the table shows them."""
        model, chat = self.model, self.model.chat
        entry: dict[str, Any] = {}
        nll = tokens = loops = count = 0.0
        for name in (*PROMPT_SETS, "harmful+prefill"):
            prompts = self.judged[name.partition("+")[0]]
            prefill = PREFILL if "+" in name else ""
            answers = self.answers(candidate, prompts, prefill)
            texts = [chat.decode(chat.answer_ids(prefill) + answer) for answer in answers]
            refused = [
                judge_refusal(text, str(messages[-1]["content"])).refused
                for text, messages in zip(texts, prompts, strict=True)
            ]
            entry[name] = sum(refused) / len(refused)
            if not prefill:
                plain = [chat.ids(messages) for messages in prompts]
                nll += float(answer_nll(model, plain, answers).sum())
                tokens += sum(map(len, answers))
                loops += sum(map(is_looping, texts))
                count += len(texts)
        return {**entry, "nll": nll / tokens, "loops": loops / count}

    def answers(self, candidate: Candidate, prompts: Prompts, prefill: str) -> list[list[int]]:
        """Greedy answers, behind the prefill, of the teacher at each prompt's own strength."""
        model, chat = self.model, self.model.chat
        factors = [1.0] * len(prompts)
        if candidate.strength is not None:
            factors = candidate.strength(prompts).tolist()
        answers: list[list[int]] = [[] for _ in prompts]
        for factor in sorted(set(factors)):
            rows = [row for row, own in enumerate(factors) if own == factor]
            teacher = candidate.at(factor)
            with teacher.active(model.model):
                generated = generate(
                    model.model,
                    model.tokenizer,
                    [chat.ids(teacher.messages(prompts[row], prefill), prefill) for row in rows],
                    Decoding(TOKENS),
                    batch_size=64,
                )
            for row, answer in zip(rows, generated, strict=True):
                answers[row] = answer
        return answers


def table(found: dict[str, dict[str, Any]]) -> str:
    """The rates in Markdown."""
    columns = (*PROMPT_SETS, "harmful+prefill")
    lines = [table_head("teacher", *columns, "perplexity", "loops")]
    own = found[PLAIN]["nll"]
    for name, entry in found.items():
        cells = [f"{entry[column]:.0%}" for column in columns]
        cells += [f"x{math.exp(entry['nll'] - own):.1f}", f"{entry['loops']:.0%}"]
        lines.append(table_row(name, *cells))
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("output", type=Path, nargs="?", default=Path("teachers.json"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--limit", type=int, default=50, help="prompts per set")
    parser.add_argument("--only", default="", help="parts of names, separated by commas")


def run(arguments: argparse.Namespace) -> None:
    """Measure the teachers that are missing, then print the table."""
    parts = names(arguments.only)
    made_with = {"model": arguments.model, "limit": arguments.limit, "fitted": FITTED}
    kept = read_json(arguments.output) if arguments.output.exists() else dict(made_with)
    if {key: kept.get(key) for key in made_with} != made_with:
        raise InputError(
            f"{arguments.output} has results of another model or other prompts. Try: another file"
        )
    found: dict[str, Any] = kept.setdefault("teachers", {})
    laboratory = Laboratory(load_model(ModelSettings(id=arguments.model)), arguments.limit)
    for name, candidate in laboratory.teachers().items():
        wanted = name == PLAIN or not parts or any(part in name for part in parts)
        if name not in found and wanted:
            found[name] = laboratory.measure(candidate)
            write_json(arguments.output, kept)
    print(table(found))


if __name__ == "__main__":
    run_script("research.teachers")
