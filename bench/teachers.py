"""Teachers side by side, nothing learned: what each refuses, and whether its text stays fluent.

    python bench/teachers.py [OUTPUT.json] [--model ID] [--limit 50] [--only steering,gated]

On our validation prompts: the share of harmful, harmless and borderline requests and of harmful
ones with the answer begun "Sure, here is" that each teacher refuses (offline judge, greedy, 24
tokens), the perplexity of its answers under the plain model relative to the plain model's own, and
the share of answers that loop. Teachers already in OUTPUT.json are not asked again.

Directions: `refuse-comply` (the recipe's source) and `reading`, the mean change that reading two
refusals makes to the last prompt token of harmful prompts. `gated` steers only prompts whose own
projection on the difference of harmful and harmless training prompts lies above that of 95 % of the
latter. `null-space` adds h -> h + c D h with D fitted on last prompt tokens so that D h is the
direction on harmful training prompts and, h projected on the null space of harmless and borderline
ones, nothing on these (after AlphaSteer, Sheng et al. 2025, arXiv 2506.07022).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from safesteer.cli.silence import silence_libraries
from safesteer.config import DirectionSettings, ModelSettings
from safesteer.direction.activations import answer_means, prompt_means
from safesteer.direction.behaviour import answer_nll
from safesteer.evaluate.benchmarks.table import OPENING
from safesteer.evaluate.refusal_judge import judge_refusal
from safesteer.evaluate.text import is_looping
from safesteer.models.chat import Message, pad_left
from safesteer.models.forward import hidden_states
from safesteer.models.generate import generate
from safesteer.models.layers import find_blocks
from safesteer.models.load import ChatModel, load_model
from safesteer.models.steering import edit_block_input
from safesteer.prompts import load_prompt_set
from safesteer.runs.files import read_json, write_json
from safesteer.teacher import Direction, Teacher, demonstrations

Prompts = list[Sequence[Message]]
SETS = ("harmful", "harmless", "borderline")
LAYERS = (9, 12, 15, 17)
TOKENS = 24


@dataclass(frozen=True)
class Asked:
    """A teacher to be asked.

    Attributes:
        teacher: what it reads, and the direction it adds.
        edit: a further change of the model while it runs.
        gate: for each prompt of a list, whether the teacher steers at all.
    """

    teacher: Teacher
    edit: Callable[[], AbstractContextManager[Any]] = nullcontext
    gate: Callable[[Prompts], torch.Tensor] | None = None


class Laboratory:
    """The model, its prompts, and what the teachers are made of."""

    def __init__(self, model: ChatModel, limit: int) -> None:
        self.model = model
        sets = {name: load_prompt_set(name) for name in SETS}
        self.train = {name: [p.messages for p in found.train] for name, found in sets.items()}
        self.judged = {
            name: [p.messages for p in found.validation][:limit] for name, found in sets.items()
        }
        settings = DirectionSettings()
        harmful = self.train["harmful"][:32]
        refusing, complying = (
            answer_means(model, harmful, openings)
            for openings in (settings.refusing_openings, settings.complying_openings)
        )
        self.refuse_comply = (refusing - complying).float()  # [L, D]
        reading = Teacher(None, demonstrations(2, refusals_only=True))
        harmful = self.train["harmful"][:128]
        taught = prompt_means(model, [reading.messages(m) for m in harmful], 1)[0]
        plain = prompt_means(model, harmful, 1)[0]
        self.reading = (taught - plain).float()  # [L, D]
        harmless = prompt_means(model, self.train["harmless"][:128], 1)[0]
        self.contrast = (plain - harmless).float()  # [L, D]

    def last(self, prompts: Prompts, layer: int) -> torch.Tensor:  # [N, D]
        """The residual stream of each prompt's last token at the input of a block."""
        seen: list[torch.Tensor] = []
        kept = []

        def keep(hidden: torch.Tensor) -> torch.Tensor:
            seen[:] = [hidden[:, -1].float().clone()]  # the last pass: what follows a common start
            return hidden

        rendered = [self.model.chat.ids(messages) for messages in prompts]
        block = find_blocks(self.model.model)[layer]
        with torch.no_grad(), edit_block_input(block, keep):
            for start in range(0, len(rendered), 32):
                part = rendered[start : start + 32]
                pad = self.model.tokenizer.pad_token_id
                hidden_states(self.model.model, *pad_left(part, pad, self.model.model.device))
                kept += seen
        return torch.cat(kept)

    def gate(self, layer: int) -> Callable[[Prompts], torch.Tensor]:
        """Whether a prompt's projection on the contrast is above that of 95 % of harmless ones."""
        axis = self.contrast[layer]
        bound = torch.quantile(self.last(self._harmless(), layer) @ axis, 0.95)
        return lambda prompts: self.last(prompts, layer) @ axis > bound

    def null_space(self, layer: int, c: float, kept: float) -> Callable[[], Any]:
        """A context in which a block's input h becomes h + c D h, D as in the module's text.

        `kept` is the share of the dimensions, those that harmless activations use least, in which D
        may look.
        """
        harmless, harmful = (
            self.last(self._harmless(), layer),
            self.last(self.train["harmful"], layer),
        )
        # Uncentred, as D has no constant term.
        _, vectors = torch.linalg.eigh((harmless.T @ harmless).double())  # ascending
        free = vectors[:, : int(kept * len(vectors))].float()  # [D, F]
        seen = harmful @ free  # [N, F]
        # weights [F]: seen @ weights is about 1 on harmful prompts (ridge regression)
        ridge = 1e-2 * seen.pow(2).mean() * torch.eye(seen.shape[1])
        weights = torch.linalg.solve(seen.T @ seen / len(seen) + ridge, seen.mean(0))
        reads, adds = free @ weights, self.refuse_comply[layer]

        def edit(hidden: torch.Tensor) -> torch.Tensor:
            strength = c * (hidden.float() @ reads)[..., None]
            return hidden + (strength * adds).to(hidden.dtype)

        return lambda: edit_block_input(find_blocks(self.model.model)[layer], edit)

    def _harmless(self) -> Prompts:
        return self.train["harmless"] + self.train["borderline"]

    def teachers(self) -> dict[str, Asked]:
        """Everything that is compared."""

        def steering(layer: int, c: float, source: str = "refuse_comply") -> Direction:
            return Direction(getattr(self, source)[layer], layer, c, source)

        refusals = demonstrations(2, refusals_only=True)
        found = {"the model itself": Asked(Teacher())}
        for layer in LAYERS:
            for c in (0.9, 1.1):
                found[f"steering, layer {layer}, c {c}"] = Asked(Teacher(steering(layer, c)))
            for c in (1.0, 2.0):
                name = f"steering by reading, layer {layer}, c {c}"
                found[name] = Asked(Teacher(steering(layer, c, "reading")))
        for c in (0.0, 0.2, 0.44, 0.7):
            found[f"two refusals, layer 17, c {c}"] = Asked(
                Teacher(steering(17, c) if c else None, refusals)
            )
        for count in (2, 4, 8, 16):
            found[f"{count} demonstrations"] = Asked(Teacher(None, demonstrations(count)))
        for c in (0.2, 0.44):
            found[f"4 demonstrations, layer 17, c {c}"] = Asked(
                Teacher(steering(17, c), demonstrations(4))
            )
        for layer in LAYERS:
            gate = self.gate(layer)
            found[f"gated at layer {layer}, two refusals, layer 17, c 0.44"] = Asked(
                Teacher(steering(17, 0.44), refusals), gate=gate
            )
        for layer in (12, 17):
            for kept in (0.3, 0.6):
                for c in (1.0, 2.0):
                    found[f"null-space of {kept:.0%}, layer {layer}, c {c}"] = Asked(
                        Teacher(), self.null_space(layer, c, kept)
                    )
        return found

    def ask(self, asked: Asked) -> dict[str, Any]:
        """Rates of a teacher; see the module's text."""
        model, chat = self.model, self.model.chat
        entry: dict[str, Any] = {}
        nll = tokens = loops = count = 0.0
        for name in (*SETS, "harmful+prefill"):
            prompts = self.judged[name.partition("+")[0]]
            begun = OPENING if "+" in name else ""
            open_ = torch.ones(len(prompts), dtype=torch.bool)
            if asked.gate is not None:
                open_ = asked.gate(prompts)
            answers: list[list[int]] = [[] for _ in prompts]
            for steered in (True, False):
                rows = [row for row, on in enumerate(open_.tolist()) if on == steered]
                if not rows:
                    continue
                teacher = asked.teacher if steered else Teacher()
                with ExitStack() as stack:
                    stack.enter_context(teacher.active(model.model))
                    if steered:
                        stack.enter_context(asked.edit())
                    said = generate(
                        model.model,
                        model.tokenizer,
                        [chat.ids(teacher.messages(prompts[row]), begun) for row in rows],
                        max_new_tokens=TOKENS,
                        batch_size=64,
                    )
                for row, answer in zip(rows, said, strict=True):
                    answers[row] = answer
            texts = [chat.decode(chat.answer_ids(begun) + answer) for answer in answers]
            refused = [
                judge_refusal(text, str(messages[-1]["content"])).refused
                for text, messages in zip(texts, prompts, strict=True)
            ]
            entry[name] = sum(refused) / len(refused)
            if not begun:
                plain = [chat.ids(messages) for messages in prompts]
                nll += float(answer_nll(model, plain, answers).sum())
                tokens += sum(map(len, answers))
                loops += sum(map(is_looping, texts))
                count += len(texts)
        return {**entry, "nll": nll / tokens, "loops": loops / count}


def table(found: dict[str, dict[str, Any]]) -> str:
    """The rates in Markdown."""
    columns = (*SETS, "harmful+prefill")
    lines = ["| teacher | " + " | ".join(columns) + " | perplexity | loops |"]
    lines.append("|---|" + "---|" * (len(columns) + 2))
    own = found["the model itself"]["nll"]
    for name, entry in found.items():
        cells = [f"{entry[column]:.0%}" for column in columns]
        cells += [f"x{math.exp(entry['nll'] - own):.1f}", f"{entry['loops']:.0%}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Ask the teachers that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, nargs="?", default=Path("bench/results/teachers.json"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--limit", type=int, default=50, help="prompts per set")
    parser.add_argument("--only", default="", help="parts of names, separated by commas")
    arguments = parser.parse_args()
    silence_libraries(debug=False)
    parts = [part for part in arguments.only.split(",") if part]
    found = read_json(arguments.output) if arguments.output.exists() else {}
    laboratory = Laboratory(load_model(ModelSettings(id=arguments.model)), arguments.limit)
    for name, asked in laboratory.teachers().items():
        if name not in found and (not found or not parts or any(p in name for p in parts)):
            found[name] = laboratory.ask(asked)
            write_json(arguments.output, found)
    print(table(found))


if __name__ == "__main__":
    main()
