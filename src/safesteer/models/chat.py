"""The one chat renderer: messages to token ids, the same in every stage.

Uses the tokenizer's own template. Knows nothing of models. Control tokens that a user types stay
text: ``<|im_end|>`` inside a message never becomes the token that ends a turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from safesteer.errors import InputError

Message = dict[str, str]

# Stands for a message's content while the template is rendered; private-use characters occur in no
# tokenizer's control tokens and survive a template's trimming.
_MARK = "\ue000{}\ue001"
_PROBE = "probe"


class ChatRenderer:
    """Renders chat messages with a tokenizer's template.

    Args:
        tokenizer: a tokenizer with a chat template.
        template_kwargs: arguments of the template, such as ``enable_thinking``.

    Raises:
        InputError: the tokenizer has no chat template, or the template cannot render one turn.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = dict(template_kwargs or {})
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(
                "the model has no chat template: it looks like a base model, not a chat model;"
                " give one with --chat-template FILE (a Jinja file)"
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        # Special tokens, and those that the template itself writes (Qwen's <think> is not special).
        # Gemma's added tokens for line breaks and HTML tags are ordinary text.
        template = str(tokenizer.chat_template)
        controls = sorted(
            {
                token.content
                for token in tokenizer.added_tokens_decoder.values()
                if token.special or (token.content.strip() and token.content in template)
            }
            - {""},
            key=len,
            reverse=True,
        )
        # The look-ahead finds overlapping occurrences too.
        self._control = (
            re.compile("(?=(" + "|".join(map(re.escape, controls)) + "))") if controls else None
        )
        # Templates of some vision-language models read a list of parts and leave out a plain text.
        self._in_parts = False
        try:
            probe = [{"role": "user", "content": _PROBE}]
            if _PROBE not in self.text(probe):
                self._in_parts = True
                self._in_parts = _PROBE in self.text(probe)
        except Exception as error:  # a template is a program: it can fail in any way
            raise InputError(
                "the chat template cannot render a single user turn"
                f" ({' '.join(str(error).split())})"
            ) from None

    def text(self, messages: Sequence[Message], generation_prompt: bool = True) -> str:
        """The rendered conversation as text, ending where the answer begins."""
        return str(
            self.tokenizer.apply_chat_template(
                self.shaped(messages),
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **self.template_kwargs,
            )
        )

    def shaped(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages as the template reads them: their content a text, or a list of one."""
        if not self._in_parts:
            return list(messages)
        return [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            for message in messages
        ]

    @property
    def reads_parts(self) -> bool:
        """Whether the template wants the content of a message as a list."""
        return self._in_parts

    def ids(self, messages: Sequence[Message], answer: str = "") -> list[int]:
        """Token ids of the conversation, ending where the answer begins or after `answer`."""
        pieces = self._pieces(messages)
        ids = [token for piece in pieces for token in self._encode(piece)]
        return ids + self._encode(answer) if answer else ids

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of the text of an answer, without any template token."""
        return self._encode(answer)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, control tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def post_instruction_ids(self) -> list[int]:
        """The template's tokens after the user's text (paper: post-instruction tokens).

        They are the longest common end of two renderings that differ in the user's text alone.
        """
        one = self.ids([{"role": "user", "content": "Name a colour."}])
        two = self.ids([{"role": "user", "content": "How far is the moon?"}])
        count = 0
        while count < min(len(one), len(two)) and one[-1 - count] == two[-1 - count]:
            count += 1
        # The last character of the text may merge with nothing and be common too ('.' against '?'
        # are not), so the count is the template's own.
        return one[len(one) - count :]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _pieces(self, messages: Sequence[Message]) -> list[str]:
        """The rendered text, cut inside every control token that a message's content contains."""
        contents = [message["content"] for message in messages]
        if self._control is None or not any(self._control.search(text) for text in contents):
            return [self.text(messages)]
        marked = [
            {**message, "content": _MARK.format(index)} for index, message in enumerate(messages)
        ]
        rendered = self.text(marked)
        pieces = [""]
        for part in re.split(r"(\ue000\d+\ue001)", rendered):
            if not re.fullmatch(r"\ue000\d+\ue001", part):
                pieces[-1] += part
                continue
            content = contents[int(part[1:-1])]
            start = 0
            for match in self._control.finditer(content):
                cut = match.start() + 1
                pieces[-1] += content[start:cut]
                pieces.append("")
                start = cut
            pieces[-1] += content[start:]
        return pieces


def pad_left(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:  # ids [B, T], attention mask [B, T]
    """Stack sequences of different length, padded on the left as generation needs it."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        if len(sequence):
            ids[row, width - len(sequence) :] = torch.tensor(list(sequence), dtype=torch.long)
            mask[row, width - len(sequence) :] = 1
    return ids.to(device), mask.to(device)
