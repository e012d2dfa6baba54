"""The output matrix: hidden states to log-probabilities, without a [positions, vocabulary] tensor.

One definition for every stage that needs log-probabilities. The log-sum-exp over the vocabulary is
streamed over chunks of positions; the logits of the chosen tokens are read from their rows alone,
in float32. Scale, bias and soft-capping of the logits are honoured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from safesteer.models.layers import text_config

# Elements of one chunk of logits: 32 MiB in float32, large enough for full speed of the product.
_CHUNK_ELEMENTS = 1 << 23


@dataclass
class OutputHead:
    """logits = softcap * tanh(scale * (h W^T + bias) / softcap) / temperature.

    The order is that of transformers.

    Attributes:
        weight: [V, D].
        bias: [V] or None.
        scale: factor on the logits (Cohere, Granite, Falcon-H1).
        softcap: bound of the logits (Gemma), or None.
        temperature: below 1 the distribution is surer than the model's own.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @classmethod
    def of(cls, model: nn.Module) -> OutputHead:
        """The output head of a causal language model, also behind a PEFT adapter."""
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

    def at(self, temperature: float) -> OutputHead:
        """The same head at another temperature."""
        return self if temperature == self.temperature else replace(self, temperature=temperature)

    @property
    def vocabulary(self) -> int:
        """V, the number of rows of the output matrix."""
        return self.weight.shape[0]

    def logits(
        self,
        hidden: torch.Tensor,  # [N, D]
        tokens: torch.Tensor | None = None,  # [K], all of the vocabulary if None
    ) -> torch.Tensor:  # [N, V] or [N, K], float32
        """Logits of all tokens, or of the given ones computed in float32 throughout."""
        device = hidden.device
        hidden = hidden.to(self.weight.device)  # a model may lie on several devices
        if tokens is None:
            raw = (hidden.to(self.weight.dtype) @ self.weight.T).float()
            bias = self.bias
        else:
            tokens = tokens.to(self.weight.device)
            raw = hidden.float() @ self.weight[tokens].float().T
            bias = None if self.bias is None else self.bias[tokens]
        if bias is not None:
            raw = raw + bias.float()
        if self.scale != 1.0:
            raw = raw * self.scale
        if self.softcap is not None:
            raw = self.softcap * torch.tanh(raw / self.softcap)
        return (raw / self.temperature if self.temperature != 1.0 else raw).to(device)

    def chunks(self, positions: int) -> list[slice]:
        """Slices of positions whose logits fit one chunk."""
        step = max(1, _CHUNK_ELEMENTS // self.vocabulary)
        return [slice(start, start + step) for start in range(0, positions, step)]

    def log_probs(
        self,
        hidden: torch.Tensor,  # [N, D]
        tokens: torch.Tensor,  # [K]
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [N, K] log-probabilities, [N] entropy in nats
        """Log-probabilities of `tokens` under the softmax over the whole vocabulary.

        Differentiable in `hidden`, and in the weight and bias if they require gradients. The
        entropy carries no gradient.
        """
        device = hidden.device
        hidden, tokens = hidden.to(self.weight.device), tokens.to(self.weight.device)
        chosen = self.logits(hidden, tokens)
        log_z, entropy = _LogPartition.apply(
            hidden, self.weight, self.bias, self, tokens, chosen.detach()
        )
        return (chosen - log_z[:, None]).to(device), entropy.to(device)

    @torch.no_grad()
    def fixed_log_probs(
        self,
        hidden: torch.Tensor,  # [N, D]
        tokens: torch.Tensor,  # [K]
    ) -> torch.Tensor:  # [N, K]
        """The log-probabilities of `log_probs` for one who does not learn: no gradient, no entropy.

        The probabilities of the other tokens are then never written down, half of the time.
        """
        chosen = self.logits(hidden, tokens)
        log_z = hidden.new_empty(len(hidden), dtype=torch.float32)
        for part in self.chunks(len(hidden)):
            logits = _with_chosen(self.logits(hidden[part]), tokens, chosen[part])
            log_z[part] = torch.logsumexp(logits, dim=-1)
        return chosen - log_z[:, None]


class _LogPartition(torch.autograd.Function):
    """log sum_v exp(logit_v) per position, with its gradient made in the same pass.

    With a frozen head the forward keeps only d log Z / d h [N, D]; with a trainable head the
    backward goes through the chunks once more. The logits of the chosen tokens, made in float32,
    stand in for the rounded ones of the product: where one of them holds most of the mass, its
    probability would otherwise be off by the rounding of its own logit, and could exceed one.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, head, tokens, chosen):  # type: ignore[no-untyped-def]
        positions = hidden.shape[0]
        log_z = hidden.new_empty(positions, dtype=torch.float32)
        entropy = hidden.new_empty(positions, dtype=torch.float32)
        ctx.head = head
        ctx.chosen = (tokens, chosen)
        needs_hidden = ctx.needs_input_grad[0]
        needs_head = ctx.needs_input_grad[1] or (bias is not None and ctx.needs_input_grad[2])
        gradient = torch.empty_like(hidden) if needs_hidden else None
        for part in head.chunks(positions):
            logits = _with_chosen(head.logits(hidden[part]), tokens, chosen[part])  # [n, V]
            log_z[part] = torch.logsumexp(logits, dim=-1)
            probabilities = torch.exp(logits - log_z[part, None])
            entropy[part] = log_z[part] - (probabilities * logits).sum(-1)
            if gradient is not None:
                gradient[part] = _times_slope(probabilities, logits, head).to(weight.dtype) @ weight
        ctx.mark_non_differentiable(entropy)
        ctx.save_for_backward(gradient, *((hidden, weight, bias) if needs_head else ()))
        return log_z, entropy

    @staticmethod
    def backward(ctx, grad_log_z, _grad_entropy):  # type: ignore[no-untyped-def]
        gradient, *trainable = ctx.saved_tensors
        grad_hidden = grad_weight = grad_bias = None
        if gradient is not None:
            grad_hidden = gradient * grad_log_z[:, None].to(gradient.dtype)
        if trainable:
            hidden, weight, bias = trainable
            head = ctx.head
            tokens, chosen = ctx.chosen
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
            grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
            for part in head.chunks(hidden.shape[0]):
                logits = _with_chosen(head.logits(hidden[part]), tokens, chosen[part])
                probabilities = torch.softmax(logits, dim=-1)
                outer = _times_slope(probabilities, logits, head) * grad_log_z[part, None]
                grad_weight += (outer.to(weight.dtype).T @ hidden[part].to(weight.dtype)).float()
                if grad_bias is not None:
                    grad_bias += outer.sum(0)
            grad_weight = grad_weight.to(weight.dtype)
            grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _with_chosen(logits: torch.Tensor, tokens: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    logits[:, tokens] = chosen
    return logits


def _times_slope(values: torch.Tensor, logits: torch.Tensor, head: OutputHead) -> torch.Tensor:
    """d logit / d raw logit, multiplied into `values` [n, V]."""
    if head.softcap is not None:
        values = values * (1 - (logits * head.temperature / head.softcap) ** 2)
    slope = head.scale / head.temperature
    return values * slope if slope != 1.0 else values
