"""The chat renderer: messages to token ids, by the tokenizer's own template, in every stage.

Control tokens that a user types stay text: ``<|im_end|>`` inside a message never becomes the token
that ends a turn. If a model thinks before it answers, its prompts end in an empty, closed thinking
block unless the settings turn thinking on; then thoughts and answer are separated (thinking.py).
"""

from __future__ import annotations

import copy
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from safesteer.errors import InputError, one_line
from safesteer.models.thinking import find_thinking

Message = dict[str, str]

# Placeholder of a message's content while the template is rendered: private-use characters occur in
# no control token and survive a template's trimming.
_MARK = "\ue000{}\ue001"
_PROBE = "probe"
_MAX_RENDERED = 4096  # prompts whose token ids are kept


@dataclass(frozen=True)
class Response:
    """A model's answer, and its thoughts if any, as texts without control tokens."""

    answer: str
    thinking: str = ""
    finished: bool = True  # False if it ended inside the thinking block
    cut: bool = False  # whether it reached the token limit before the end of the turn


class ChatRenderer:
    """Renders chat messages with a tokenizer's template.

    Args:
        tokenizer: a tokenizer with a chat template; it gets a padding token if it has none.
        template_kwargs: arguments of the template; ``enable_thinking=True`` lets the model think
            before it answers.
        as_is: leave prompts as the template makes them, thinking block or not.
        reads_parts: whether the template reads a message's content as a list of parts; None tests
            it with a user turn.

    Attributes:
        thinking: the template's thinking block; None if it has none.
        template_kwargs: the arguments, with the one that makes the template close that block.
        appended: text after the template's prompt, to close the block if the template does not.

    Raises:
        InputError: the tokenizer has no chat template, or the template cannot render one turn.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template_kwargs: dict[str, Any] | None = None,
        *,
        as_is: bool = False,
        reads_parts: bool | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = dict(template_kwargs or {})
        self.thinking = None
        self.appended = ""
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(
                "the model has no chat template; it looks like a base model. Try: a chat model, or"
                " --chat-template FILE (a Jinja file)"
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        # Special tokens, and those that the template writes (Qwen's <think> is not special).
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
        # The lookahead also finds overlapping occurrences.
        self._control = (
            re.compile("(?=(" + "|".join(map(re.escape, controls)) + "))") if controls else None
        )
        self._rendered: dict[Any, list[int]] = {}
        self.reads_parts = bool(reads_parts)
        if reads_parts is None:
            self.reads_parts = self._detect_parts()
        if not as_is:
            source = template + "".join(t.content for t in tokenizer.added_tokens_decoder.values())
            self.thinking = find_thinking(self._render, self.template_kwargs, source)
        if self.thinking is not None:
            self.template_kwargs = self.thinking.template_kwargs
            self.appended = "" if self.thinking.on else self.thinking.close

    @property
    def thinks(self) -> bool:
        """Whether responses begin with the model's thoughts."""
        return self.thinking is not None and self.thinking.on and not self.appended

    @cached_property
    def without_thinking(self) -> ChatRenderer:
        """The renderer whose prompts end with an empty thinking block; itself if none is needed."""
        if not self.thinks:
            return self
        assert self.thinking is not None
        renderer = copy.copy(self)
        renderer.appended = self.thinking.close
        renderer._rendered = {}
        return renderer

    def text(self, messages: Sequence[Message], generation_prompt: bool = True) -> str:
        """The rendered conversation, ending where the model's response begins."""
        rendered = self._render(messages, generation_prompt, **self.template_kwargs)
        return rendered + self.appended if generation_prompt else rendered

    def shaped(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages as the template reads them, their contents as texts or lists of one part."""
        if not self.reads_parts:
            return list(messages)
        return [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            for message in messages
        ]

    def ids(self, messages: Sequence[Message], prefill: str = "") -> list[int]:
        """Token ids of the conversation, ending where the model's response begins.

        A response with a `prefill` starts with this text, without thoughts before it.

        Raises:
            InputError: the template cannot render such a conversation.
        """
        if prefill:
            return self.without_thinking.ids(messages) + self.answer_ids(prefill)
        key = repr(list(messages))
        if key not in self._rendered:
            if len(self._rendered) >= _MAX_RENDERED:
                self._rendered.clear()
            try:
                pieces = self._pieces(messages)
            except Exception as error:  # a template is a program: it can fail in any way
                roles = ", ".join(message["role"] for message in messages)
                raise InputError(
                    f"the chat template cannot render a conversation of the roles {roles}"
                    f" ({one_line(error)}). Try: prompts with other roles"
                ) from error
            self._rendered[key] = [token for piece in pieces for token in self.answer_ids(piece)]
        return list(self._rendered[key])

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer's text, without template tokens."""
        return list(self.tokenizer(answer, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without control tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def response(self, ids: Sequence[int]) -> Response:
        """The generated `ids` as thoughts and answer."""
        start = self.answer_start(ids)
        if not start:
            if start is None:
                return Response("", self._thoughts(ids), finished=False)
            return Response(self.decode(ids))
        return Response(self.decode(ids[start:]).lstrip(), self._thoughts(ids[:start]))

    def answer_start(self, ids: Sequence[int]) -> int | None:
        """Index of the answer's first token in the generated `ids`; None if there is no answer."""
        if self.thinking is None:
            return 0
        ids, closing = list(ids), self.thinking.closing.strip()

        def closed(count: int) -> bool:
            return closing in self._all(ids[:count])

        # Searched in the text, because a token may reach over the ends of the tag.
        if closed(len(ids)):
            return bisect_left(range(len(ids)), True, key=closed)
        opened = self._all(ids).lstrip().startswith(self.thinking.opening.strip())
        return None if opened or (self.thinks and self.thinking.inside) else 0

    def _thoughts(self, ids: Sequence[int]) -> str:
        """The text of the thinking block, without its tags."""
        assert self.thinking is not None
        text = self._all(ids).partition(self.thinking.closing.strip())[0].strip()
        for tag in (self.thinking.opening.strip(), self.tokenizer.eos_token or ""):
            text = text.removeprefix(tag).removesuffix(tag).strip()
        return text

    def _all(self, ids: Sequence[int]) -> str:
        """The text of tokens, including control tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def post_instruction_ids(self) -> list[int]:
        """The template's tokens after the user's text, called post-instruction tokens.

        They are the longest common suffix of two renderings that differ in the user's text.

        Source: Arditi et al. 2024 (arXiv 2406.11717).
        """
        one = self.without_thinking.ids([{"role": "user", "content": "Name a colour."}])
        two = self.without_thinking.ids([{"role": "user", "content": "How far is the moon?"}])
        count = 0
        while count < min(len(one), len(two)) and one[-1 - count] == two[-1 - count]:
            count += 1
        # The texts end differently, in '.' and '?', so the suffix is the template's own.
        return one[len(one) - count :]

    def _detect_parts(self) -> bool:
        # Templates of some vision-language models read a list of parts and skip plain text.
        probe = [{"role": "user", "content": _PROBE}]
        try:
            if _PROBE in self.text(probe):
                return False
            self.reads_parts = True
            return _PROBE in self.text(probe)
        except Exception as error:  # a template is a program: it can fail in any way
            raise InputError(
                f"the chat template cannot render a single user turn ({one_line(error)}). Try:"
                " --chat-template FILE (a Jinja file)"
            ) from None

    def _render(self, messages: Sequence[Message], generation_prompt: bool, **kwargs: Any) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                self.shaped(messages),
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **kwargs,
            )
        )

    def _pieces(self, messages: Sequence[Message]) -> list[str]:
        """The rendered text, cut inside each control token that a message's content contains."""
        contents = [message["content"] for message in messages]
        if self._control is None or not any(self._control.search(text) for text in contents):
            return [self.text(messages)]
        marked = [
            {**message, "content": _MARK.format(index)} for index, message in enumerate(messages)
        ]
        rendered = self.text(marked)
        template, *filled = re.split(r"\ue000(\d+)\ue001", rendered)
        pieces = [template]
        for index, template in zip(filled[::2], filled[1::2], strict=True):
            content = contents[int(index)]
            cuts = [match.start() + 1 for match in self._control.finditer(content)]
            first, *more = (content[a:b] for a, b in pairwise([0, *cuts, len(content)]))
            pieces[-1] += first
            pieces += more
            pieces[-1] += template
        return pieces


def pad_left(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack token ids of different lengths, padded on the left.

    Returns:
        Token ids and attention mask, [B, T] each, on `device`.
    """
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        if len(sequence):
            ids[row, width - len(sequence) :] = torch.tensor(list(sequence), dtype=torch.long)
            mask[row, width - len(sequence) :] = 1
    return ids.to(device), mask.to(device)
