"""Mean activations of the residual stream, streamed over batches in float64.

The residual stream at layer l is the input of block l. Padding is on the left and positions are
counted from the end, so padding never shifts them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch

from safesteer.events import Progress
from safesteer.models.chat import Message, pad_left
from safesteer.models.hidden_states import common_prefix, hidden_states
from safesteer.models.layers import find_blocks
from safesteer.models.load import ChatModel
from safesteer.models.oom import in_batches
from safesteer.models.steering import edit_block_input

Keep = Callable[[torch.Tensor], torch.Tensor]  # final hidden states [B, D] -> bool [B]


def prompt_means(
    model: ChatModel,
    prompts: Sequence[Sequence[Message]],
    positions: int,
    keep: Keep | None = None,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> tuple[torch.Tensor, int]:
    """Mean residual stream at the last tokens of the rendered prompts, in one pass over all.

    Args:
        model: the model.
        prompts: conversations that end with a request.
        positions: P, how many tokens from the end.
        keep: selects prompts by their final hidden states at the last token; None keeps all.
        batch_size: prompts in a batch.
        progress: called with the prompts done and all prompts.

    Returns:
        Means [P, L, D] in float64 (nan if no prompt was kept), and the number of prompts kept.
    """
    sequences = [model.chat.ids(messages) for messages in prompts]
    sums, kept = _sums(model, sequences, positions, batch_size, progress, keep)
    return sums / kept, kept


def answer_means(
    model: ChatModel,
    prompts: Sequence[Sequence[Message]],
    openings: Sequence[str],
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Mean residual stream [L, D] in float64 over the tokens of answer openings.

    Each is put after every prompt, and has the same weight whatever its length.
    """
    rendered = [model.chat.ids(messages) for messages in prompts]
    total = torch.zeros(())
    for done, opening in enumerate(openings, start=1):
        tail = model.chat.answer_ids(opening)
        sums, _ = _sums(model, [ids + tail for ids in rendered], len(tail), batch_size, None)
        total = total + sums.sum(0) / (len(rendered) * len(tail))
        if progress is not None:
            progress(done, len(openings))
    return total / len(openings)


@torch.no_grad()
def request_means(
    model: ChatModel,
    prompts: Sequence[Sequence[Message]],
    layer: int,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Mean input of block `layer` over the tokens of each request [N, D], float64 on the CPU.

    The tokens that the chat template puts around a request do not count.
    """
    sequences = [model.chat.ids(messages) for messages in prompts]
    short = [model.chat.ids([{"role": "user", "content": text}]) for text in ("x", "Banana")]
    start, end = common_prefix(short), len(model.chat.post_instruction_ids())
    device, found = model.model.device, [torch.empty(0)] * len(sequences)
    seen: dict[str, torch.Tensor] = {}

    def look(hidden: torch.Tensor) -> torch.Tensor:
        seen["states"] = hidden
        return hidden

    with edit_block_input(find_blocks(model.model)[layer], look):

        def read(rows: list[int]) -> torch.Tensor:
            batch = [sequences[row] for row in rows]
            ids, mask = pad_left(batch, model.tokenizer.pad_token_id, device)
            # What comes after the template's beginning is read in the last pass.
            hidden_states(model.model, ids, mask, tail=max(1, max(map(len, batch)) - start))
            states = seen.pop("states")
            return torch.stack(
                [
                    one[min(-1, start - len(row)) : -end or None].double().mean(0).cpu()
                    if len(row) > start + end
                    else one[-1].double().cpu()
                    for one, row in zip(states, batch, strict=True)
                ]
            )

        done = 0
        for rows, means in in_batches(sequences, batch_size, read, device):
            for row, mean in zip(rows, means, strict=True):
                found[row] = mean
            done += len(rows)
            if progress is not None:
                progress(done, len(sequences))
    return torch.stack(found)


@torch.no_grad()
def _sums(
    model: ChatModel,
    sequences: list[list[int]],
    tail: int,
    batch_size: int,
    progress: Progress | None,
    keep: Keep | None = None,
) -> tuple[torch.Tensor, int]:
    """Sums [tail, L, D] at the last `tail` tokens of the kept sequences, and their number."""
    blocks = find_blocks(model.model)
    width = model.model.get_output_embeddings().weight.shape[1]
    device = model.model.device
    sums = torch.zeros(tail, len(blocks), width, dtype=torch.float64, device=device)

    last: dict[int, torch.Tensor] = {}
    kept = 0

    def collect(layer: int):  # type: ignore[no-untyped-def]
        def look(hidden: torch.Tensor) -> torch.Tensor:
            last[layer] = hidden[:, -tail:].clone()  # a view would hold all of every block's input
            return hidden

        return look

    with ExitStack() as hooks:
        for layer, block in enumerate(blocks):
            hooks.enter_context(edit_block_input(block, collect(layer)))

        def read(rows: list[int]) -> torch.Tensor:
            batch = [sequences[row] for row in rows]
            ids, mask = pad_left(batch, model.tokenizer.pad_token_id, device)
            return hidden_states(model.model, ids, mask, tail=tail)[:, -1]

        done = 0
        for rows, final in in_batches(sequences, batch_size, read, device):
            # On the CPU, because a model may lie on several devices.
            which = torch.ones(len(final), dtype=torch.bool) if keep is None else keep(final).cpu()
            kept += int(which.sum())
            for layer, hidden in last.items():
                sums[:, layer] += hidden[which].double().sum(0).to(sums.device)
            done += len(rows)
            if progress is not None:
                progress(done, len(sequences))
    return sums, kept
