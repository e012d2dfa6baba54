"""Forward passes of student and teacher over rollouts.

They return the hidden states that predict each token of the completions. The teacher reads the
rollouts of a window at once, in passes of its own size. Where it reads the very tokens that the
student reads, the blocks below its steered layer and below the first trainable weight compute the
same for both, and run once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from safesteer.models.base_weights import base_weights
from safesteer.models.chat import ChatRenderer, pad_left
from safesteer.models.hidden_states import hidden_states
from safesteer.models.layer_cache import record_inputs, startable_layers
from safesteer.models.layers import find_blocks, is_sharded
from safesteer.models.prompt_states import PromptStates, continue_prompts, read_prompts
from safesteer.teacher import Teacher

# Enough to fill a device with one pass of the teacher, which takes little memory, since it keeps
# nothing for a gradient.
TEACHER_BATCH_TOKENS = 4096

# prompt_ids, prompt_mask [B, P], completion_ids, completion_mask [B, C], strength, prefilled [B];
# also prompts (PromptStates or None) if no gradient flows through them
Batch = dict[str, Any]


def trim_padding(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the batch no wider than its longest prompt and completion."""
    before = int(batch["prompt_mask"].sum(-1).max())
    after = int(batch["completion_mask"].sum(-1).max())
    return {
        **batch,
        **{key: batch[key][:, -before:] for key in ("prompt_ids", "prompt_mask")},
        **{
            key: batch[key][:, :after]
            for key in ("completion_ids", "completion_mask", "answer_mask", "teacher_hidden")
            if key in batch
        },
    }


class ForwardPasses:
    """Forward passes of the student and of its teacher.

    A pass of the teacher alone reads about `batch_tokens` tokens.
    """

    def __init__(
        self, chat: ChatRenderer, teacher: Teacher, accelerator: Accelerator, batch_tokens: int
    ) -> None:
        self.chat = chat
        self.teacher = teacher
        self.accelerator = accelerator
        self.batch_tokens = batch_tokens

    def read(
        self, model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, batch: Batch
    ) -> torch.Tensor:
        """Hidden states [B, C, D] of a model, as it is, that predict the tokens of completions.

        Args:
            model: a causal language model.
            ids: token ids of the prompts [B, P], padded on the left.
            mask: their attention mask [B, P].
            batch: completion_ids and completion_mask [B, C].
        """
        length = batch["completion_ids"].shape[1]
        ids = torch.cat([ids, batch["completion_ids"]], dim=1)
        mask = torch.cat([mask, batch["completion_mask"]], dim=1)
        # TRL calls the loss in place of the model's forward, where accelerate's autocast sits.
        with self.accelerator.autocast():
            return hidden_states(model, ids, mask)[:, -length - 1 : -1]

    def read_prompts(self, student: nn.Module, batch: Batch) -> PromptStates | None:
        """Read prompts for `answer`, up to the template's tokens after the user's text.

        None where there can be no cache, see `safesteer.models.prompt_states`.
        """
        with _evaluating(student), self.accelerator.autocast():
            return read_prompts(
                student,
                batch["prompt_ids"],
                batch["prompt_mask"],
                last=len(self.chat.post_instruction_ids()),
                new_tokens=batch["completion_ids"].shape[1],
            )

    def answer(self, student: nn.Module, batch: Batch) -> torch.Tensor:
        """Hidden states as those of `read`, continuing `batch["prompts"]` of `read_prompts`."""
        ids, mask = batch["completion_ids"], batch["completion_mask"]
        with self.accelerator.autocast():
            return continue_prompts(student, batch["prompts"], ids, mask)

    @torch.no_grad()
    def teach(
        self, base: nn.Module, ids: torch.Tensor, mask: torch.Tensor, batch: Batch
    ) -> torch.Tensor:
        """Hidden states [B, C, D] of what teaches each row, by its strength; see `read`.

        `base` becomes the teacher, its adapters off; `ids` and `mask` are the prompts as it then
        reads them.
        """
        lengths = mask.sum(-1)
        hidden = torch.empty(0)
        with _evaluating(base):
            for plain, rows in _groups(batch):
                passes = list(self._passes(rows, lengths, batch["completion_ids"].shape[1]))
                for part, counts in self._in_step(base, passes):
                    with base_weights(base) if plain else self._teaching(base, batch, part):
                        width = int(lengths[part].max())
                        completions = {
                            key: batch[key][part] for key in ("completion_ids", "completion_mask")
                        }
                        states = self.read(
                            base, ids[part][:, -width:], mask[part][:, -width:], completions
                        )
                        if not len(hidden):
                            hidden = states.new_empty((len(ids), *states.shape[1:]))
                        if counts:
                            hidden[part] = states
        return hidden

    def _teaching(
        self, base: nn.Module, batch: Batch, rows: torch.Tensor
    ) -> AbstractContextManager[None]:
        strengths = batch["strength"][rows]
        # One vector for all rows, as a rule: then their common beginning runs once.
        one = bool((strengths == strengths[0]).all())
        return self.teacher.active(base, strengths[0].item() if one else strengths)

    @torch.no_grad()
    def teach_from(
        self, student: nn.Module, layer: int, batch: Batch
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run the teacher over the student's own prompts, and keep what the student can reuse.

        Returns:
            Hidden states as those of `teach`, and what entered block `layer`, of `shared_blocks`,
            in each pass, for `safesteer.models.layer_cache.start_at_layer`.
        """
        with (
            _evaluating(student),
            self.teacher.active(student, batch["strength"]),
            record_inputs(student, [layer]) as entered,
        ):
            hidden = self.read(student, batch["prompt_ids"], batch["prompt_mask"], batch)
        return hidden, entered[layer]

    def shared_blocks(self, student: nn.Module) -> int:
        """Return how many of the lowest blocks compute the same for teacher and student.

        These are the blocks below both the steered layer and the first trainable weight, if the
        teacher reads what the student reads. A small pass tests whether the architecture allows it.
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
            found = startable_layers(student, [layer], lambda: hidden_states(student, ids, mask))
        return layer if layer in found else 0

    def _passes(
        self, rows: torch.Tensor, lengths: torch.Tensor, new: int
    ) -> Iterator[torch.Tensor]:
        """`rows` sorted by length and cut into passes of about `batch_tokens` tokens."""
        rows = rows[lengths[rows].argsort(descending=True)]
        while len(rows):
            count = max(1, self.batch_tokens // (int(lengths[rows[0]]) + new))
            yield rows[:count]
            rows = rows[count:]

    def _in_step(
        self, model: nn.Module, passes: list[torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, bool]]:
        """The passes and that they count; then as many more as any other process makes.

        Weights split over processes are gathered pass by pass, for all of them.
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


def _groups(batch: Batch) -> Iterator[tuple[bool, torch.Tensor]]:
    """Whether the plain base teaches them, and the rows, of each group that is read apart.

    A group has one sign of its strengths, hence one context. Prefilled rows are apart because the
    teacher's examples are prefilled with them. All rows of a pass then begin with the same text,
    which runs once.
    """
    for sign in (1, 0, -1):
        for prefilled in (False, True):
            rows = (batch["strength"].sign() == sign) & (batch["prefilled"] == prefilled)
            yield sign == 0, rows.nonzero().flatten()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
