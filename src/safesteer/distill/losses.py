"""Divergences between student and teacher on the safety tokens, one function each.

Inputs are log-probabilities of the full softmax; how they are made (streamed, chunked, from which
matrix) is `safesteer.models.lm_head`'s business. K safety tokens, N positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from safesteer.models.lm_head import OutputHead

# Positions of a chunk for a loss over the whole vocabulary. With fewer the output matrix is read
# too often for what is computed with it; more only take memory: this many rows of 151,936 logits
# have 156 MB in float32, and about six such tensors are alive at once.
_FULL_POSITIONS = 256


def paper(log_s: torch.Tensor, log_t: torch.Tensor) -> torch.Tensor:
    """sum_S p_s log(p_s / p_t), the published loss (paper, equation 5).

    Not a divergence: probabilities are those of the full softmax, so it can be negative, and its
    gradient in p_s vanishes at p_s = p_t / e instead of p_s = p_t.
    """
    return (log_s.exp() * (log_s - log_t)).sum(-1)


def generalized(log_s: torch.Tensor, log_t: torch.Tensor) -> torch.Tensor:
    """sum_S [p_s log(p_s / p_t) - p_s + p_t]: zero exactly where p_s = p_t on S, never negative."""
    p_s = log_s.exp()
    return (p_s * (log_s - log_t) - p_s + log_t.exp()).sum(-1)


def tail(log_s: torch.Tensor, log_t: torch.Tensor) -> torch.Tensor:
    """Reverse KL over S and one more outcome, "any other token", with mass 1 - sum_S p."""
    rest_s, rest_t = _rest(log_s), _rest(log_t)
    return paper(log_s, log_t) + rest_s.exp() * (rest_s - rest_t)


def renormalized(log_s: torch.Tensor, log_t: torch.Tensor) -> torch.Tensor:
    """Reverse KL between the two distributions renormalised over S (the paper's ablation)."""
    return paper(torch.log_softmax(log_s, dim=-1), torch.log_softmax(log_t, dim=-1))


def forward(log_s: torch.Tensor, log_t: torch.Tensor) -> torch.Tensor:
    """sum_S [p_t log(p_t / p_s) - p_t + p_s]: the generalised KL with the roles exchanged."""
    return generalized(log_t, log_s)


def tail_forward(log_s: torch.Tensor, log_t: torch.Tensor) -> torch.Tensor:
    """`tail` + `forward`, which pulls where p_s is near 0, as reverse KL does not."""
    return tail(log_s, log_t) + forward(log_s, log_t)


DIVERGENCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "paper": paper,
    "generalized": generalized,
    "tail": tail,
    "renormalized": renormalized,
    "forward": forward,
    "tail_forward": tail_forward,
}


def _rest(log_p: torch.Tensor) -> torch.Tensor:
    """log(1 - sum_S p) [N], kept finite where S holds all of the mass."""
    return torch.log((1 - log_p.exp().sum(-1)).clamp_min(1e-7))


def completion_mean(
    per_position: torch.Tensor,  # [N], one value per completion position, rows one after another
    lengths: torch.Tensor,  # [B], positions of each completion; they sum to N
) -> torch.Tensor:  # scalar
    """(1/B) sum_b (1/T_b) sum_t L_bt, the paper's reduction: every completion counts the same."""
    weight = torch.repeat_interleave(1.0 / lengths.clamp_min(1).float(), lengths)
    return (per_position * weight.to(per_position.device)).sum() / lengths.numel()


def distillation_loss(
    divergence: str,
    head: OutputHead,
    student_hidden: torch.Tensor,  # [N, D], with gradient
    teacher_hidden: torch.Tensor,  # [N, D], without
    tokens: torch.Tensor,  # [K], the safety tokens
    teacher_head: OutputHead | None = None,
    *,
    loss_tokens: str = "safety",
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:  # per position [N]; metrics, each [N]
    """The named divergence at every position, and the masses and entropy that are logged.

    `teacher_head` differs from `head` when the head itself is trained, or in temperature.
    `loss_tokens` is "safety", or "all" for the divergence over the whole vocabulary: forward KL
    for `forward`, the sum of reverse and forward KL for `tail_forward`, reverse KL for the others.
    """
    if loss_tokens == "all":
        teacher_head = teacher_head or head
        return _full(divergence, head, student_hidden, teacher_hidden, tokens, teacher_head)
    log_s, entropy = head.log_probs(student_hidden, tokens)
    log_t = (teacher_head or head).fixed_log_probs(teacher_hidden, tokens)
    metrics = {
        "mass_student": log_s.detach().exp().sum(-1),
        "mass_teacher": log_t.exp().sum(-1),
        "entropy": entropy,
    }
    return DIVERGENCES[divergence](log_s, log_t), metrics


def _full(
    divergence: str,
    head: OutputHead,
    student_hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    tokens: torch.Tensor,
    teacher_head: OutputHead,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """KL over the vocabulary, chunk by chunk; each chunk is computed again in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    def chunk(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, ...]:
        log_s = torch.log_softmax(head.logits(student), dim=-1)
        with torch.no_grad():
            log_t = torch.log_softmax(teacher_head.logits(teacher), dim=-1)
        p_s = log_s.exp()
        terms = []
        if divergence != "forward":
            terms.append((p_s * (log_s - log_t)).sum(-1))
        if divergence in ("forward", "tail_forward"):
            terms.append((log_t.exp() * (log_t - log_s)).sum(-1))
        return (
            terms[0] if len(terms) == 1 else terms[0] + terms[1],
            p_s[:, tokens].sum(-1).detach(),
            log_t[:, tokens].exp().sum(-1),
            -(p_s * log_s).sum(-1).detach(),
        )

    parts = [
        checkpoint(chunk, student, teacher, use_reentrant=False)
        for student, teacher in zip(
            student_hidden.split(_FULL_POSITIONS),
            teacher_hidden.split(_FULL_POSITIONS),
            strict=True,
        )
    ]
    loss, mass_s, mass_t, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    return loss, {"mass_student": mass_s, "mass_teacher": mass_t, "entropy": entropy}
