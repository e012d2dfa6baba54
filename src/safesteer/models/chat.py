"""The one chat renderer: messages to token ids, the same in every stage.

Uses the tokenizer's own template. Knows nothing of models. Control tokens that a user types stay
text: ``<|im_end|>`` inside a message never becomes the token that ends a turn. Where a model thinks
before it answers, the prompt ends in a closed, empty thinking block, unless thinking is asked for;
what is thought then is told apart from the answer (thinking.py).
"""

from __future__ import annotations

import copy
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from safesteer.errors import InputError, one_line
from safesteer.models.thinking import find_thinking

Message = dict[str, str]

# Stands for a message's content while the template is rendered; private-use characters occur in no
# tokenizer's control tokens and survive a template's trimming.
_MARK = "\ue000{}\ue001"
_PROBE = "probe"


@dataclass(frozen=True)
class Response:
    """What a model wrote, its thoughts told apart.

    Attributes:
        answer: without control tokens; "" where there is none.
        thinking: what stands in the thinking block.
        finished: whether it came to an answer; False if the end came inside the thinking block.
        cut: whether the limit of tokens came before the end of the turn.
    """

    answer: str
    thinking: str = ""
    finished: bool = True
    cut: bool = False


class ChatRenderer:
    """Renders chat messages with a tokenizer's template.

    Args:
        tokenizer: a tokenizer with a chat template.
        template_kwargs: arguments of the template, such as ``enable_thinking``: true lets a model
            think before it answers.
        as_is: leave prompts as the template makes them, whatever it says of thinking.

    Attributes:
        thinking: the template's thinking block, None where it has none.
        template_kwargs: with the argument by which the template itself closes that block.
        appended: what follows the template's prompt, to close the block where it does not.

    Raises:
        InputError: the tokenizer has no chat template, or the template cannot render one turn.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template_kwargs: dict[str, Any] | None = None,
        *,
        as_is: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = dict(template_kwargs or {})
        self.thinking = None
        self.appended = ""
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
                f"the chat template cannot render a single user turn ({one_line(error)})"
            ) from None
        if not as_is:
            source = template + "".join(t.content for t in tokenizer.added_tokens_decoder.values())
            self.thinking = find_thinking(self._render, self.template_kwargs, source)
        if self.thinking is not None:
            self.template_kwargs = self.thinking.template_kwargs
            self.appended = "" if self.thinking.on else self.thinking.close

    @property
    def thinks(self) -> bool:
        """Whether what the model writes after a prompt begins with its thoughts."""
        return self.thinking is not None and self.thinking.on and not self.appended

    @cached_property
    def closed(self) -> ChatRenderer:
        """The renderer whose prompts end where the answer begins: itself, or after no thoughts."""
        if not self.thinks:
            return self
        assert self.thinking is not None
        closed = copy.copy(self)
        closed.appended = self.thinking.close
        return closed

    def text(self, messages: Sequence[Message], generation_prompt: bool = True) -> str:
        """The rendered conversation as text, ending where the model goes on."""
        rendered = self._render(messages, generation_prompt, **self.template_kwargs)
        return rendered + self.appended if generation_prompt else rendered

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
        """Token ids of the conversation, ending where the model goes on or after `answer`.

        Before a given answer nothing is thought.

        Raises InputError where the template cannot render such a conversation.
        """
        try:
            pieces = (self.closed if answer else self)._pieces(messages)
        except Exception as error:  # a template is a program: it can fail in any way
            roles = ", ".join(message["role"] for message in messages)
            raise InputError(
                f"the chat template cannot render a conversation of the roles {roles}"
                f" ({one_line(error)})"
            ) from error
        ids = [token for piece in pieces for token in self._encode(piece)]
        return ids + self._encode(answer) if answer else ids

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of the text of an answer, without any template token."""
        return self._encode(answer)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, control tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def response(self, ids: Sequence[int]) -> Response:
        """What the model wrote after a prompt: its thoughts, and its answer."""
        start = self.answer_start(ids)
        if not start:
            if start is None:
                return Response("", self._thoughts(ids), finished=False)
            return Response(self.decode(ids))
        return Response(self.decode(ids[start:]).lstrip(), self._thoughts(ids[:start]))

    def answer_start(self, ids: Sequence[int]) -> int | None:
        """Where in what the model wrote its answer begins; None if it did not end its thoughts."""
        if self.thinking is None:
            return 0
        ids, closing = list(ids), self.thinking.closing.strip()

        def closed(count: int) -> bool:
            return closing in self._all(ids[:count])

        # Searched in the text, because tokens may reach over the ends of the tag.
        if closed(len(ids)):
            return bisect_left(range(len(ids)), True, key=closed)
        opened = self._all(ids).lstrip().startswith(self.thinking.opening.strip())
        return None if opened or (self.thinks and self.thinking.inside) else 0

    def _thoughts(self, ids: Sequence[int]) -> str:
        """The text of a thinking block without its tags."""
        assert self.thinking is not None
        text = self._all(ids).partition(self.thinking.closing.strip())[0].strip()
        for tag in (self.thinking.opening.strip(), self.tokenizer.eos_token or ""):
            text = text.removeprefix(tag).removesuffix(tag).strip()
        return text

    def _all(self, ids: Sequence[int]) -> str:
        """The text of tokens, control tokens included."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def post_instruction_ids(self) -> list[int]:
        """The template's tokens after the user's text (paper: post-instruction tokens).

        They are the longest common end of two renderings that differ in the user's text alone.
        """
        one = self.closed.ids([{"role": "user", "content": "Name a colour."}])
        two = self.closed.ids([{"role": "user", "content": "How far is the moon?"}])
        count = 0
        while count < min(len(one), len(two)) and one[-1 - count] == two[-1 - count]:
            count += 1
        # The last character of the text may merge with nothing and be common too ('.' against '?'
        # are not), so the count is the template's own.
        return one[len(one) - count :]

    def _render(self, messages: Sequence[Message], generation_prompt: bool, **kwargs: Any) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                self.shaped(messages),
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **kwargs,
            )
        )

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
