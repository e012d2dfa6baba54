"""The same conversation with several speakers, each with its own answers in it."""

from __future__ import annotations

from collections.abc import Sequence

from safesteer.models.chat import Message
from safesteer.speaker import Speaker

UNFINISHED = "(no answer: it did not end its thoughts; raise --max-new-tokens)"


class Conversation:
    """Keeps what was said to and by each of the speakers."""

    def __init__(
        self,
        speakers: Sequence[Speaker],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._speakers = speakers
        self._max_new_tokens = max_new_tokens
        self._temperature = temperature
        self._seed = seed
        self._turns: list[list[Message]] = [[] for _ in speakers]

    def say(self, text: str) -> dict[str, str]:
        """{speaker: answer} to the user's next turn."""
        answers = {}
        for speaker, turns in zip(self._speakers, self._turns, strict=True):
            turns.append({"role": "user", "content": text})
            (said,) = speaker.say(
                [turns],
                max_new_tokens=self._max_new_tokens,
                temperature=self._temperature,
                seed=self._seed + len(turns),
            )
            turns.append({"role": "assistant", "content": said.answer})
            answers[speaker.name] = said.answer if said.finished else UNFINISHED
        return answers

    def reset(self) -> None:
        """Forget everything that was said."""
        for turns in self._turns:
            turns.clear()
