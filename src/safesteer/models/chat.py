"""The chat renderer: messages to token ids, by the tokenizer's own template, in every stage.

Control tokens that a user types stay text: ``<|im_end|>`` inside a message never becomes the token
that ends a turn. If a model thinks before it answers, its prompts end in an empty, closed thinking
block unless the settings turn thinking on; then thoughts and answer are separated (thinking.py).
A template that leaves out what the user says is refused.
"""

from __future__ import annotations

import copy
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from safesteer.errors import InputError, one_line
from safesteer.models.template import change_of_text, reads_clock, render, shows
from safesteer.models.thinking import find_thinking, unclosed_thinking

Message = dict[str, str]

# Placeholder of a message's content while the template is rendered: private-use characters occur in
# no control token and survive a template's trimming.
_MARK = "\ue000{}\ue001"
_PROBE = "Qxzv probe"
_RENDERINGS = 9  # of one conversation, which show whether a template draws at random
_MAX_RENDERED = 4096  # prompts whose token ids are kept


@dataclass(frozen=True)
class Response:
    """A model's answer, and its thoughts if any, as texts without control tokens."""

    answer: str
    thinking: str = ""
    finished: bool = True  # False if it ended inside the thinking block
    cut: bool = False  # whether it reached the token limit before the end of the turn
    skipped: bool = False  # the model's positions do not hold the prompt, so there is no answer


class ChatRenderer:
    """Renders chat messages with a tokenizer's template.

    Args:
        tokenizer: a tokenizer with a chat template; it gets a padding token if it has none.
        template_kwargs: arguments of the template; ``enable_thinking=True`` lets the model think
            before it answers.
        as_is: leave prompts as the template makes them, thinking block or not.
        reads_parts: whether the template reads a message's content as a list of parts; None tests
            it with a user turn.
        now: the time that the template reads; the present one if None.

    Attributes:
        rows: number of the model's output tokens, where the tokenizer has more; None otherwise.
        thinking: the template's thinking block; None if it has none.
        template_kwargs: the arguments, with the one that makes the template close that block.
        appended: text after the template's prompt, to close the block if the template does not.

    Raises:
        InputError: the tokenizer has no chat template or no token for padding, or the template
            cannot render one turn or leaves out its text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template_kwargs: dict[str, Any] | None = None,
        *,
        as_is: bool = False,
        reads_parts: bool | None = None,
        now: datetime | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.now = now or datetime.now()
        self.rows: int | None = None
        self.template_kwargs = dict(template_kwargs or {})
        self.thinking = None
        self.appended = ""
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(
                "the model has no chat template; it looks like a base model. Try: a chat model, or"
                " --chat-template FILE (a Jinja file)"
            )
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token is None:
                raise InputError(
                    "the tokenizer names no token that ends a text (eos_token) and none for padding"
                    " (pad_token). Try: set eos_token in its tokenizer_config.json"
                )
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
        self.change = "changes" if as_is else change_of_text(self._turn)  # a verb, or empty
        self.unclosed = ""  # a tag that opens a thinking block and that nothing is known to close
        if not as_is:
            source = template + "".join(t.content for t in tokenizer.added_tokens_decoder.values())
            self.thinking = find_thinking(self._render, self.template_kwargs, source)
            if self.thinking is None:
                self.unclosed = unclosed_thinking(self._render, self.template_kwargs)
        if self.thinking is not None:
            self.template_kwargs = self.thinking.template_kwargs
            self.appended = "" if self.thinking.on else self.thinking.close

    @property
    def thinks(self) -> bool:
        """Whether responses begin with the model's thoughts."""
        return self.thinking is not None and self.thinking.on and not self.appended

    @property
    def date(self) -> str | None:
        """The time that the template reads, to the second; None for one that reads none."""
        reads = reads_clock(str(self.tokenizer.chat_template))
        return self.now.isoformat(timespec="seconds") if reads else None

    @property
    def notes(self) -> list[str]:
        """What a person should know about the template, a sentence each."""
        notes = []
        if self.change:
            notes.append(f"the chat template {self.change} the user's text")
        if self.date:
            notes.append(f"the chat template writes the date, here always {self.date}")
        if self.unclosed:
            notes.append(
                f"whether the model thinks is unknown: the chat template opens {self.unclosed} and"
                " names no tag that closes it, so thoughts count as the answer. Try:"
                " --chat-template FILE, with the closing tag"
            )
        return notes

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
            InputError: the template cannot render such a conversation or leaves out a message of
                it, or the model has no row for one of its tokens.
        """
        if prefill:
            return self.without_thinking.ids(messages) + self._in_rows(self.answer_ids(prefill))
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
            self._require_shown(messages, "".join(pieces))
            ids = [token for piece in pieces for token in self.answer_ids(piece)]
            self._rendered[key] = self._in_rows(ids)
        return list(self._rendered[key])

    def _require_shown(self, messages: Sequence[Message], rendered: str) -> None:
        """Raise InputError if the template leaves out what the user or the system says."""
        for message in messages if self.change != "changes" else ():
            if message["role"] != "assistant" and not shows(rendered, message["content"]):
                roles = ", ".join(message["role"] for message in messages)
                raise InputError(
                    f"the chat template leaves out the {message['role']} message of a conversation"
                    f" of the roles {roles}. Try: prompts and a teacher.context without that role,"
                    " or --chat-template FILE (a Jinja file)"
                )

    def _in_rows(self, ids: list[int]) -> list[int]:
        """The `ids`; InputError for those that the model has no row for."""
        if self.rows is not None and (beyond := sorted({i for i in ids if i >= self.rows})):
            named = ", ".join(f"{i} {self.tokenizer.decode([i])!r}" for i in beyond[:4])
            raise InputError(
                f"the tokenizer makes tokens that the model has no row for ({named}; its output"
                f" matrix has {self.rows} rows). Try: the model's own tokenizer"
            )
        return ids

    def require_rows(self, rows: int) -> None:
        """Allow a tokenizer with more tokens than `rows`, unless one beyond them is in use.

        Raises:
            InputError: a special token, or one of the template's, lies beyond.
        """
        self.rows = rows if len(self.tokenizer) > rows else None
        special = (getattr(self.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad"))
        self._in_rows([token for token in special if token is not None])
        self._rendered.clear()
        self.post_instruction_ids()

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
        try:
            if len({self._turn(_PROBE) for _ in range(_RENDERINGS)}) > 1:
                raise InputError(
                    "the chat template renders the same conversation differently each time. Try:"
                    " --chat-template FILE (a Jinja file) without anything random"
                )
            for self.reads_parts in (False, True):
                turn = self._turn(_PROBE)
                # A list that is printed as it is was not read.
                if shows(turn, _PROBE) and "'type': 'text'" not in turn:
                    return self.reads_parts
        except InputError:
            raise
        except Exception as error:  # a template is a program: it can fail in any way
            raise InputError(
                f"the chat template cannot render a single user turn ({one_line(error)}). Try:"
                " --chat-template FILE (a Jinja file)"
            ) from None
        raise InputError(
            "the chat template leaves out the user's text. Try: --chat-template FILE (a Jinja file)"
        )

    def _turn(self, text: str) -> str:
        """One turn of the user with this text, rendered."""
        return self.text([{"role": "user", "content": text}])

    def _render(self, messages: Sequence[Message], generation_prompt: bool, **kwargs: Any) -> str:
        shaped = self.shaped(messages)
        return render(self.tokenizer, shaped, generation_prompt, self.now, **kwargs)

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
