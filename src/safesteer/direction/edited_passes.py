"""Batched forward passes of one prompt set under many activation edits, to score candidates.

Rendering and sorting by length are done once, and so are the blocks below a layer that is edited.
Several edited copies share a batch, each row with its own vector: prompts of one length fill it,
with hardly any padding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache, DynamicLayer

from safesteer.models.chat import Message, pad_left
from safesteer.models.hidden_states import common_prefix, empty_cache, is_worthwhile, positions
from safesteer.models.layer_cache import record_inputs, start_at_layer, startable_layers
from safesteer.models.layers import backbone
from safesteer.models.load import ChatModel
from safesteer.models.oom import ROW_TOKENS, rows_together
from safesteer.models.overflow import check_finite

# Rows of a batch, prompts times copies. More rows read the weights less often, but padding grows
# with the prompts in a batch. Both numbers are estimates.
_ROWS = {"cpu": 48}
_ROWS_ELSEWHERE = 256
# Bytes for block inputs; they are kept for as many layers at once as fit.
_KEPT_BYTES = 1 << 30

Edit = Callable[[torch.Tensor], AbstractContextManager[None]]  # of [B, D], a vector for each row


class RepeatedPrompts:
    """The last hidden state of every prompt, under any number of edits of the model."""

    def __init__(self, model: ChatModel, prompts: Sequence[Sequence[Message]]) -> None:
        self.model = model.model
        rendered = [model.chat.ids(messages) for messages in prompts]
        order = sorted(range(len(rendered)), key=lambda index: len(rendered[index]))
        self._back = torch.tensor(order).argsort()
        shared = self._shared(rendered)
        ends = [rendered[index][shared:] for index in order]
        self._lengths = [len(ids) for ids in ends]
        self._begin = torch.tensor([rendered[0][:shared]], device=self.model.device)  # [1, P]
        self._ids, self._mask = pad_left(ends, model.tokenizer.pad_token_id, self.model.device)
        # {layer: what entered it, [1, P, D] and [T, D] of each prompt}
        self._kept: dict[int, tuple[torch.Tensor, list[torch.Tensor]]] = {}

    def _shared(self, rendered: list[list[int]]) -> int:
        """Length of the prompts' common prefix; 0 if it cannot be run once for all."""
        longest, shared = max(map(len, rendered)), common_prefix(rendered, tail=1)
        worthwhile = is_worthwhile(shared * (len(rendered) - 1), self.model.device)
        return shared if worthwhile and empty_cache(self.model, longest) is not None else 0

    def groups(self, layers: Collection[int]) -> list[list[int]]:
        """The layers in order, in groups that `keep` may hold at once."""
        width = self.model.get_output_embeddings().weight.shape[1]
        tokens = self._begin.numel() + sum(self._lengths)
        count = max(1, _KEPT_BYTES // (tokens * width * self.model.dtype.itemsize))
        ordered = sorted(set(layers))
        return [ordered[start : start + count] for start in range(0, len(ordered), count)]

    @torch.no_grad()
    def keep(self, layers: Collection[int]) -> torch.Tensor:
        """Read the prompts unedited and keep the inputs of `layers`, in place of those kept before.

        A layer at which a pass cannot start is skipped; edits there run all blocks.

        Returns:
            [N, D], the last hidden state of every prompt.
        """
        self._kept = {}
        nothing, no_edit = torch.zeros(1, 1), lambda vectors: nullcontext()
        begins = startable_layers(
            self.model, layers, lambda: self._read(nothing, no_edit, 0, slice(0, 1))
        )
        with record_inputs(self.model, begins - {0}) as entered:
            hidden = self.last_hidden(nothing, no_edit)[0]
        for layer, passes in entered.items():
            begin = passes.pop(0) if self._begin.numel() else passes[0][:1, :0]
            rows = [row for batch in passes for row in batch]
            # Copies: a view would hold the padding too.
            ends = [row[-n:].clone() for row, n in zip(rows, self._lengths, strict=True)]
            self._kept[layer] = (begin, ends)
        return hidden

    @torch.no_grad()
    def last_hidden(self, vectors: torch.Tensor, edit: Edit, layer: int = 0) -> torch.Tensor:
        """Hidden states [C, N, D] that predict the first token of each answer, under each edit.

        Args:
            vectors: [C, D], one for each edited copy of the model.
            edit: makes a context from a vector for each row of a batch; it must not change the
                blocks below `layer`.
            layer: the blocks below it are skipped if `keep` holds its input.
        """
        return self._read(vectors, edit, layer, slice(0, len(self._lengths)))[:, self._back]

    def _read(
        self, vectors: torch.Tensor, edit: Edit, layer: int, prompts: slice
    ) -> torch.Tensor:  # [C, N, D], prompts by length
        copies = len(vectors)
        begin, ends = self._kept.get(layer, (None, None))
        cache = None
        if self._begin.numel():
            cache = empty_cache(self.model, self._begin.shape[1] + self._lengths[-1])
            ids = self._begin.repeat(copies, 1)
            with self._from(layer, begin, copies), edit(vectors):
                self._pass(ids, torch.ones_like(ids), cache)
        parts = []
        for rows in self._batches(prompts, copies):
            width = self._lengths[rows][-1]  # the longest: they are sorted
            ids, mask = self._ids[rows, -width:], self._mask[rows, -width:]
            entered = None
            if ends is not None:
                entered = pad_sequence(ends[rows], batch_first=True, padding_side="left")
            with self._from(layer, entered, copies), edit(vectors.repeat_interleave(len(ids), 0)):
                hidden = self._pass(
                    ids.repeat(copies, 1),
                    torch.cat([mask.new_ones(len(ids), self._begin.shape[1]), mask], 1).repeat(
                        copies, 1
                    ),
                    None if cache is None else _repeated(cache, len(ids)),
                )
            parts.append(hidden[:, -1].reshape(copies, len(ids), -1))
        return torch.cat(parts, dim=1)

    def _batches(self, prompts: slice, copies: int) -> Iterator[slice]:
        """The prompts of each batch, every one of them `copies` times."""
        device = self._ids.device
        rows = _ROWS.get(device.type, _ROWS_ELSEWHERE)
        start, count = prompts.start, max(1, rows // copies)
        while start < prompts.stop:
            lengths = [copies * n for n in self._lengths[start : min(start + count, prompts.stop)]]
            stop = start + rows_together(lengths, device, tokens=rows * ROW_TOKENS)
            yield slice(start, stop)
            start = stop

    def _from(
        self, layer: int, entered: torch.Tensor | None, copies: int
    ) -> AbstractContextManager[None]:
        if entered is None:
            return nullcontext()
        return start_at_layer(self.model, layer, [entered.repeat(copies, 1, 1)])

    def _pass(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache | None
    ) -> torch.Tensor:  # [B, T, D]
        hidden = backbone(self.model)(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions(mask)[:, -ids.shape[1] :],
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        check_finite(self.model, hidden, mask[:, -ids.shape[1] :])
        return hidden


def _repeated(cache: DynamicCache, times: int) -> DynamicCache:
    """A copy of the cache with every row `times` times."""
    rows = copy.copy(cache)
    rows.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in rows.layers:
        if isinstance(layer, DynamicLayer) and layer.get_seq_length():
            layer.batch_repeat_interleave(times)
    return rows
