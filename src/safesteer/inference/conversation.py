"""One conversation with several variants, each seeing its own answers."""

from __future__ import annotations

from collections.abc import Sequence

from safesteer.inference.variant import ModelVariant
from safesteer.models.chat import Message
from safesteer.models.context import PromptTooLong
from safesteer.models.generate import Decoding

NO_ANSWER = "(no answer: the model did not finish thinking. Try: a larger --max-new-tokens)"
TOO_LONG = (
    "(no answer: the conversation is longer than the model's positions. Try: /reset, or a smaller"
    " --max-new-tokens)"
)


class Conversation:
    """A conversation of one user with several variants.

    `seed` and the number of the turn decide sampled answers.
    """

    def __init__(self, variants: Sequence[ModelVariant], decoding: Decoding, seed: int = 0) -> None:
        self._variants = variants
        self._decoding = decoding
        self._seed = seed
        self._turns: list[list[Message]] = [[] for _ in variants]

    def generate(self, text: str) -> dict[str, str]:
        """{variant: answer} to the user's next message `text`."""
        answers = {}
        for variant, turns in zip(self._variants, self._turns, strict=True):
            turns.append({"role": "user", "content": text})
            try:
                (response,) = variant.generate(
                    [turns], self._decoding, seed=self._seed + len(turns)
                )
            except PromptTooLong:
                turns.pop()
                answers[variant.name] = TOO_LONG
                continue
            turns.append({"role": "assistant", "content": response.answer})
            answers[variant.name] = response.answer if response.finished else NO_ANSWER
        return answers

    def reset(self) -> None:
        """Start the conversation over."""
        for turns in self._turns:
            turns.clear()
