"""Divergences between student and teacher on the safety tokens, and the loss they make.

All functions take log-probabilities of the softmax over the whole vocabulary; how these are
computed without a [positions, vocabulary] tensor is in `safesteer.models.lm_head`. N positions, K
safety tokens, V tokens in all, p_s and p_t the probabilities of student and teacher.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from safesteer.models.lm_head import OutputHead

# Positions of one chunk of a loss over the whole vocabulary. With fewer the output matrix is read
# too often for what is computed with it; more only take memory: this many rows of 151,936 logits
# have 156 MB in float32, and about six such tensors are alive at once.
_CHUNK_POSITIONS = 256


def paper(log_s: torch.Tensor, log_t: torch.Tensor) -> torch.Tensor:
    """Compute sum_S p_s log(p_s / p_t) [N], the published loss, as all divergences from [N, K].

    It is no divergence: p_s and p_t do not sum to 1 over S, so it can be negative, and its gradient
    in p_s vanishes at p_s = p_t / e instead of p_s = p_t.

    Source: SafeSteer (arXiv 2606.02530), equation 5.
    """
    return (log_s.exp() * (log_s - log_t)).sum(-1)


def generalized(log_s: torch.Tensor, log_t: torch.Tensor) -> torch.Tensor:
    """Compute sum_S [p_s log(p_s / p_t) - p_s + p_t], the generalized KL divergence.

    It is never negative, and zero exactly where p_s = p_t on S.
    """
    p_s = log_s.exp()
    return (p_s * (log_s - log_t) - p_s + log_t.exp()).sum(-1)


def tail(log_s: torch.Tensor, log_t: torch.Tensor) -> torch.Tensor:
    """Compute the reverse KL over S and "any other token", an outcome of mass 1 - sum_S p."""
    rest_s, rest_t = _rest(log_s), _rest(log_t)
    return paper(log_s, log_t) + rest_s.exp() * (rest_s - rest_t)


def renormalized(log_s: torch.Tensor, log_t: torch.Tensor) -> torch.Tensor:
    """Compute the reverse KL between p_s / sum_S p_s and p_t / sum_S p_t.

    Source: SafeSteer (arXiv 2606.02530), an ablation.
    """
    return paper(torch.log_softmax(log_s, dim=-1), torch.log_softmax(log_t, dim=-1))


def forward(log_s: torch.Tensor, log_t: torch.Tensor) -> torch.Tensor:
    """Compute sum_S [p_t log(p_t / p_s) - p_t + p_s], `generalized` with the roles exchanged."""
    return generalized(log_t, log_s)


def tail_forward(log_s: torch.Tensor, log_t: torch.Tensor) -> torch.Tensor:
    """Compute `tail` + `forward`.

    The second term has a gradient where p_s is near 0, which reverse KL lacks.
    """
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


def completion_mean(per_position: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Compute (1/B) sum_b (1/T_b) sum_t L_bt, in which every completion counts the same.

    L [N] holds the completions one after another, T [B] their lengths.

    Source: SafeSteer (arXiv 2606.02530), section 3.3.
    """
    weight = torch.repeat_interleave(1.0 / lengths.clamp_min(1).float(), lengths)
    return (per_position * weight.to(per_position.device)).sum() / lengths.numel()


def distillation_loss(
    divergence: str,
    head: OutputHead,
    student_hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    tokens: torch.Tensor,
    teacher_head: OutputHead | None = None,
    *,
    loss_tokens: str = "safety",
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Compute a divergence at every position, with the figures that are logged.

    Args:
        divergence: a name in `DIVERGENCES`.
        head: the student's output head.
        student_hidden: its last hidden states [N, D], with gradient.
        teacher_hidden: the teacher's [N, D], without.
        tokens: ids of the safety tokens, [K].
        teacher_head: the teacher's output head, if it differs.
        loss_tokens: "safety", or "all" for the divergence over the whole vocabulary: forward KL for
            `forward`, the sum of both KLs for `tail_forward`, reverse KL otherwise.

    Returns:
        The loss [N], and {"mass_student", "mass_teacher", "entropy"}, [N] each and without
        gradient: the probability of S under student and teacher, and the student's entropy in nats.
    """
    if loss_tokens == "all":
        teacher_head = teacher_head or head
        return _all_tokens(divergence, head, student_hidden, teacher_hidden, tokens, teacher_head)
    log_s, entropy = head.log_probs(student_hidden, tokens)
    log_t = (teacher_head or head).detached_log_probs(teacher_hidden, tokens)
    metrics = {
        "mass_student": log_s.detach().exp().sum(-1),
        "mass_teacher": log_t.exp().sum(-1),
        "entropy": entropy,
    }
    return DIVERGENCES[divergence](log_s, log_t), metrics


def _all_tokens(
    divergence: str,
    head: OutputHead,
    student_hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    tokens: torch.Tensor,
    teacher_head: OutputHead,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """KL over the vocabulary, chunk by chunk; the backward pass computes each chunk again."""
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
            student_hidden.split(_CHUNK_POSITIONS),
            teacher_hidden.split(_CHUNK_POSITIONS),
            strict=True,
        )
    ]
    loss, mass_s, mass_t, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    return loss, {"mass_student": mass_s, "mass_teacher": mass_t, "entropy": entropy}
