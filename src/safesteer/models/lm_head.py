"""Log-probabilities from hidden states, streamed over the output matrix.

The one definition of log-probabilities, without a [positions, vocabulary] tensor: the log-sum-exp
runs over blocks of fixed size, and the logits of chosen tokens are read from their rows alone, in
float32. Scale, bias and soft-capping of the logits are applied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from safesteer.models.layers import text_config

# Elements of one block of logits: 16 MiB in float32, which fit a CPU's cache and are enough for a
# fast matrix product.
_BLOCK_ELEMENTS = 1 << 22
# Positions of one block; with fewer, the output matrix is read more often.
_BLOCK_POSITIONS = 1024
_ALL = slice(None)


@dataclass
class OutputHead:
    """The output head of a model: logits = softcap * tanh(scale * (h W^T + b) / softcap) / T.

    The order of the operations is that of transformers.

    Attributes:
        weight: W [V, D].
        bias: b [V], or None.
        scale: factor on the logits (Cohere, Granite, Falcon-H1).
        softcap: bound of the logits (Gemma), or None.
        temperature: T; below 1 sharpens the distribution.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @classmethod
    def of(cls, model: nn.Module) -> OutputHead:
        """The output head of a causal language model, or of a PEFT model around one."""
        head = model.get_output_embeddings()  # type: ignore[operator]
        config = text_config(model)
        scale = 1.0
        for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
            value = getattr(config, name, None)
            if value is not None:
                scale = float(value)
                break
        else:
            # Granite and MiniCPM divide by logits_scaling; HyperCLOVA X multiplies by it.
            value = getattr(config, "logits_scaling", None)
            if value is not None:
                scale = float(value) if config.model_type == "hyperclovax" else 1.0 / float(value)
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(head.weight, getattr(head, "bias", None), scale, softcap)

    def with_temperature(self, temperature: float) -> OutputHead:
        """The same head at another temperature."""
        return self if temperature == self.temperature else replace(self, temperature=temperature)

    @property
    def vocabulary(self) -> int:
        """V, the rows of the output matrix."""
        return self.weight.shape[0]

    def logits(
        self, hidden: torch.Tensor, tokens: torch.Tensor | slice = _ALL, *, exact: bool = False
    ) -> torch.Tensor:
        """Logits [N, K] in float32 of `hidden` [N, D].

        Args:
            hidden: final hidden states.
            tokens: ids [K], or a range of ids; all by default.
            exact: compute the product in float32 too, as is always done for ids.
        """
        device = hidden.device
        hidden = hidden.to(self.weight.device)  # a model may lie on several devices
        if not isinstance(tokens, slice):
            tokens, exact = tokens.to(self.weight.device), True
        weight = self.weight[tokens]
        dtype = torch.float32 if exact else weight.dtype
        raw = (hidden.to(dtype) @ weight.to(dtype).T).float()
        if self.bias is not None:
            raw = raw + self.bias[tokens].float()
        if self.scale != 1.0:
            raw = raw * self.scale
        if self.softcap is not None:
            raw = self.softcap * torch.tanh(raw / self.softcap)
        return (raw / self.temperature if self.temperature != 1.0 else raw).to(device)

    def all_log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [N, V] of all tokens from `hidden` [N, D], in float32, for small N."""
        rows = max(1, _BLOCK_ELEMENTS // self.weight.shape[1])  # widened at once
        parts = [slice(first, first + rows) for first in range(0, self.vocabulary, rows)]
        logits = [self.logits(hidden, part, exact=True) for part in parts]
        return torch.cat(logits, dim=-1).log_softmax(-1)

    def log_probs(
        self, hidden: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities [N, K] of `tokens` [K], and the entropy [N] in nats without gradient.

        They are those of the softmax over the whole vocabulary, differentiable in `hidden` [N, D],
        and in weight and bias if they require gradients.
        """
        device = hidden.device
        hidden, tokens = hidden.to(self.weight.device), tokens.to(self.weight.device)
        chosen = self.logits(hidden, tokens)
        log_z, entropy = _LogPartition.apply(
            hidden, self.weight, self.bias, self, tokens, chosen.detach()
        )
        return (chosen - log_z[:, None]).to(device), entropy.to(device)

    @torch.no_grad()
    def detached_log_probs(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The log-probabilities of `log_probs` without gradient or entropy, in half the time."""
        device = hidden.device
        hidden, tokens = hidden.to(self.weight.device), tokens.to(self.weight.device)
        chosen = self.logits(hidden, tokens)
        log_z = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        for rows, blocks in _blocks(self, tokens, len(hidden)):
            largest, total = _nothing_yet(log_z[rows])
            for block in blocks:
                logits = block.logits(self, hidden[rows], chosen[rows])
                before, largest = largest, torch.maximum(largest, logits.amax(-1, keepdim=True))
                total *= torch.exp(before - largest)
                total += logits.sub_(largest).exp_().sum(-1, keepdim=True)
            log_z[rows] = (largest + total.log())[:, 0]
        return (chosen - log_z[:, None]).to(device)


class _LogPartition(torch.autograd.Function):
    """log Z = log sum_v exp(logit_v) per position, with its gradient from the same pass.

    Goes through blocks of the vocabulary; when a larger maximum comes, the sums so far are scaled
    down. With a frozen head the forward keeps d log Z / d h [N, D]; with a trainable head the
    backward goes through the blocks once more. The float32 logits of the chosen tokens replace
    those of the product: if one token holds most of the mass, the rounding of its logit would
    otherwise show in its probability, which could exceed one.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, head, tokens, chosen):  # type: ignore[no-untyped-def]
        log_z = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(log_z)
        needs_hidden = ctx.needs_input_grad[0]
        needs_head = ctx.needs_input_grad[1] or (bias is not None and ctx.needs_input_grad[2])
        gradient = torch.empty_like(hidden) if needs_hidden else None
        for rows, blocks in _blocks(head, tokens, len(hidden)):
            largest, total = _nothing_yet(log_z[rows])
            mean = torch.zeros_like(total)  # of the logits, not yet divided by the total
            # Without bias and cap the mean logit follows from the mean row of the weights, which
            # the gradient needs anyway; that saves a pass over the block and a copy of it.
            by_gradient = needs_hidden and bias is None and head.softcap is None
            towards = torch.zeros_like(hidden[rows], dtype=torch.float32)  # [n, D], likewise
            for block in blocks:
                logits = block.logits(head, hidden[rows], chosen[rows])
                before, largest = largest, torch.maximum(largest, logits.amax(-1, keepdim=True))
                smaller = torch.exp(before - largest)
                slope = _slope(logits, head) if needs_hidden else None
                shifted = logits.sub_(largest)
                weights = shifted.exp_() if by_gradient else torch.exp(shifted)
                part = weights.sum(-1, keepdim=True)
                total = total * smaller + part
                if not by_gradient:
                    mean = mean * smaller + largest * part
                    mean += torch.bmm(weights[:, None], shifted[:, :, None])[:, 0]
                if slope is not None:
                    if isinstance(slope, torch.Tensor):
                        weights *= slope
                    towards *= smaller
                    towards += weights.to(weight.dtype) @ weight[block.columns]
            log_z[rows] = (largest + total.log())[:, 0]
            if gradient is not None:
                constant = 1.0 if isinstance(slope, torch.Tensor) else slope
                towards *= constant / total
                gradient[rows] = towards.to(gradient.dtype)
            if by_gradient:
                entropy[rows] = log_z[rows] - (towards * hidden[rows]).sum(-1)
            else:
                entropy[rows] = log_z[rows] - (mean / total)[:, 0]
        ctx.head = head
        ctx.mark_non_differentiable(entropy)
        kept = (hidden, weight, bias, tokens, chosen, log_z) if needs_head else ()
        ctx.save_for_backward(gradient, *kept)
        return log_z, entropy

    @staticmethod
    def backward(ctx, grad_log_z, _grad_entropy):  # type: ignore[no-untyped-def]
        gradient, *trainable = ctx.saved_tensors
        grad_hidden = grad_weight = grad_bias = None
        if gradient is not None:
            grad_hidden = gradient * grad_log_z[:, None].to(gradient.dtype)
        if trainable:
            hidden, weight, bias, tokens, chosen, log_z = trainable
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
            grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
            for rows, blocks in _blocks(ctx.head, tokens, len(hidden)):
                for block in blocks:
                    logits = block.logits(ctx.head, hidden[rows], chosen[rows])
                    slope = _slope(logits, ctx.head)
                    outer = logits.sub_(log_z[rows, None]).exp_()
                    outer *= slope * grad_log_z[rows, None]
                    grad_weight[block.columns] += (
                        outer.to(weight.dtype).T @ hidden[rows].to(weight.dtype)
                    ).float()
                    if grad_bias is not None:
                        grad_bias[block.columns] += outer.sum(0)
            grad_weight = grad_weight.to(weight.dtype)
            grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None


@dataclass(frozen=True)
class _Block:
    """A range of the vocabulary, the chosen tokens in it (as indices of K), and their columns."""

    columns: slice
    chosen: torch.Tensor
    places: torch.Tensor

    def logits(
        self, head: OutputHead, hidden: torch.Tensor, chosen: torch.Tensor
    ) -> torch.Tensor:  # [n, columns], float32
        """Logits of the block, with the given ones for chosen tokens [n, K]."""
        logits = head.logits(hidden, self.columns)
        if len(self.places):
            logits[:, self.places] = chosen[:, self.chosen]
        return logits


def _blocks(
    head: OutputHead, tokens: torch.Tensor, positions: int
) -> Iterator[tuple[slice, list[_Block]]]:
    """Slices of the positions, each with the blocks of the vocabulary."""
    step = max(1, min(positions, _BLOCK_POSITIONS, _BLOCK_ELEMENTS))
    width = max(1, _BLOCK_ELEMENTS // step)
    ids = tokens.cpu()
    blocks = []
    for start in range(0, head.vocabulary, width):
        where = ((ids >= start) & (ids < start + width)).nonzero()[:, 0]
        places = ids[where] - start
        columns = slice(start, min(start + width, head.vocabulary))
        blocks.append(_Block(columns, where.to(tokens.device), places.to(tokens.device)))
    for start in range(0, positions, step):
        yield slice(start, min(start + step, positions)), blocks


def _nothing_yet(like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Initial values of the largest logit and the sum of exp(logit - largest), [n, 1] each."""
    column = like[:, None]
    return torch.full_like(column, -torch.inf), torch.zeros_like(column)


def _slope(logits: torch.Tensor, head: OutputHead) -> torch.Tensor | float:
    """d logit / d raw logit: [n, V] with soft-capping, else a number."""
    slope = head.scale / head.temperature
    if head.softcap is None:
        return slope
    return slope * (1 - (logits * (head.temperature / head.softcap)) ** 2)
