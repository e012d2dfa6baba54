"""The same conversation with several variants, each with its own answers in it."""

from __future__ import annotations

from collections.abc import Sequence

from safesteer.inference.variant import ModelVariant
from safesteer.models.chat import Message

UNFINISHED = "(no answer: it did not end its thoughts; raise --max-new-tokens)"


class Conversation:
    """Keeps what was said to and by each of the variants."""

    def __init__(
        self,
        variants: Sequence[ModelVariant],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._variants = variants
        self._max_new_tokens = max_new_tokens
        self._temperature = temperature
        self._seed = seed
        self._turns: list[list[Message]] = [[] for _ in variants]

    def generate(self, text: str) -> dict[str, str]:
        """{variant: answer} to the user's next turn."""
        answers = {}
        for variant, turns in zip(self._variants, self._turns, strict=True):
            turns.append({"role": "user", "content": text})
            (said,) = variant.generate(
                [turns],
                max_new_tokens=self._max_new_tokens,
                temperature=self._temperature,
                seed=self._seed + len(turns),
            )
            turns.append({"role": "assistant", "content": said.answer})
            answers[variant.name] = said.answer if said.finished else UNFINISHED
        return answers

    def reset(self) -> None:
        """Forget everything that was said."""
        for turns in self._turns:
            turns.clear()
