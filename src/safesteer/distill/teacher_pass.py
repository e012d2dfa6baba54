"""What student and teacher make of the student's answers: the hidden states that predict them.

The teacher reads a window of answers at once, in passes of its own. Where it reads the very tokens
that the student reads, the blocks below its steered layer and below the first trainable weight do
the same for both, and run once. Knows nothing of losses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from safesteer.models.base_weights import base_weights
from safesteer.models.chat import ChatRenderer, pad_left
from safesteer.models.hidden_states import hidden_states
from safesteer.models.layer_cache import entering, first_layers
from safesteer.models.layers import find_blocks, is_sharded
from safesteer.teacher import Teacher

# Enough for a pass of the teacher to fill a device, and little memory, as nothing is kept for a
# gradient.
TEACHER_TOKENS = 4096

# "prompt_ids", "prompt_mask" [B, P], "completion_ids", "completion_mask" [B, C], "anchor" [B]
Batch = dict[str, Any]


class Reader:
    """Reads prompts and completions as the student or as the teacher.

    Args:
        chat: renders what is read to try a model.
        teacher: how the base weights become the teacher.
        accelerator: its autocast, device and processes.
        tokens: about how many tokens a pass of the teacher alone reads.
    """

    def __init__(
        self, chat: ChatRenderer, teacher: Teacher, accelerator: Accelerator, tokens: int
    ) -> None:
        self.chat = chat
        self.teacher = teacher
        self.accelerator = accelerator
        self.tokens = tokens

    def read(
        self, model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, batch: Batch
    ) -> torch.Tensor:  # [B, C, D]
        """The hidden states that predict each token of the completions, after prompts [B, P]."""
        length = batch["completion_ids"].shape[1]
        ids = torch.cat([ids, batch["completion_ids"]], dim=1)
        mask = torch.cat([mask, batch["completion_mask"]], dim=1)
        # TRL calls the loss in place of the model's forward, where accelerate's autocast sits.
        with self.accelerator.autocast():
            return hidden_states(model, ids, mask)[:, -length - 1 : -1]

    @torch.no_grad()
    def teach(
        self, base: nn.Module, ids: torch.Tensor, mask: torch.Tensor, batch: Batch
    ) -> torch.Tensor:  # [B, C, D]
        """What the teacher makes of the completions, and the plain base on anchor rows.

        `base` becomes the teacher, its adapter off; `ids`, `mask` [B, T] are the prompts as the
        teacher reads them.
        """
        lengths = mask.sum(-1)
        hidden = torch.empty(0)
        # Apart, because the teacher reads other examples where answers were begun: what all rows of
        # a pass begin with runs once.
        kinds = 2 * batch["anchor"].long() + batch["begun"].long()
        with _evaluating(base):
            for kind in range(4):
                rows = (kinds == kind).nonzero().flatten()
                passes = list(self._passes(rows, lengths, batch["completion_ids"].shape[1]))
                with base_weights(base) if kind >= 2 else self.teacher.active(base):
                    for part, counts in self._in_step(base, passes):
                        width = int(lengths[part].max())
                        completions = {
                            key: batch[key][part] for key in ("completion_ids", "completion_mask")
                        }
                        found = self.read(
                            base, ids[part][:, -width:], mask[part][:, -width:], completions
                        )
                        if not len(hidden):
                            hidden = found.new_empty((len(ids), *found.shape[1:]))
                        if counts:
                            hidden[part] = found
        return hidden

    @torch.no_grad()
    def teach_from(
        self, student: nn.Module, layer: int, batch: Batch
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """`teach` on the student's own prompts, [B, C, D], and what entered `layer` in each pass.

        The student can go on from there with `safesteer.models.layer_cache`.
        """
        with (
            _evaluating(student),
            self.teacher.active(student, ~batch["anchor"]),
            entering(student, [layer]) as entered,
        ):
            hidden = self.read(student, batch["prompt_ids"], batch["prompt_mask"], batch)
        return hidden, entered[layer]

    def shared_blocks(self, student: nn.Module) -> int:
        """How many of the lowest blocks do the same for teacher and student; 0: they share none.

        These are the blocks below both the steered layer and the first trainable weight, if the
        teacher reads what the student reads. Whether the architecture allows it is tried.
        """
        if self.teacher.direction is None or self.teacher.context or is_sharded(student):
            return 0
        blocks = find_blocks(student)
        inside = {id(p): index for index, block in enumerate(blocks) for p in block.parameters()}
        first = min(inside.get(id(p), 0) for p in student.parameters() if p.requires_grad)
        layer = min(first, self.teacher.direction.layer)
        if layer == 0:
            return 0
        tried = [[{"role": "user", "content": text}] for text in ("Hello.", "How are you?")]
        ids, mask = pad_left(
            [self.chat.ids(messages) for messages in tried],
            self.chat.tokenizer.pad_token_id,
            self.accelerator.device,
        )
        with _evaluating(student), base_weights(student):
            found = first_layers(student, [layer], lambda: hidden_states(student, ids, mask))
        return layer if layer in found else 0

    def _passes(
        self, rows: torch.Tensor, lengths: torch.Tensor, new: int
    ) -> Iterator[torch.Tensor]:
        """`rows` sorted by length and cut into passes of about `tokens` tokens."""
        rows = rows[lengths[rows].argsort(descending=True)]
        while len(rows):
            count = max(1, self.tokens // (int(lengths[rows[0]]) + new))
            yield rows[:count]
            rows = rows[count:]

    def _in_step(
        self, model: nn.Module, passes: list[torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, bool]]:
        """The passes and that they count; then as many more as any other process makes.

        Weights spread over processes are gathered pass by pass, for all of them.
        """
        most = len(passes)
        if is_sharded(model):
            device = self.accelerator.device
            most = int(self.accelerator.gather(torch.tensor([most], device=device)).max())
        for number in range(most):
            if number < len(passes):
                yield passes[number], True
            else:
                yield torch.zeros(1, dtype=torch.long, device=self.accelerator.device), False


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
