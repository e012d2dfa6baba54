"""The divergences against slow, plain definitions, and what each is minimised by."""

import math
from functools import partial

import pytest
import torch

from safesteer.distill.losses import DIVERGENCES, completion_mean, distillation_loss
from safesteer.models.lm_head import OutputHead

VOCABULARY, TOKENS = 11, [2, 3, 7]


def slow(name: str, p_s: list[float], p_t: list[float]) -> float:
    """A divergence at one position, over the probabilities of S, in plain Python."""
    pairs = list(zip(p_s, p_t, strict=True))
    if name == "paper":
        return sum(s * math.log(s / t) for s, t in pairs)
    if name == "generalized":
        return sum(s * math.log(s / t) - s + t for s, t in pairs)
    if name == "forward":
        return sum(t * math.log(t / s) - t + s for s, t in pairs)
    if name == "tail":
        pairs.append((1 - sum(p_s), 1 - sum(p_t)))
        return sum(s * math.log(s / t) for s, t in pairs)
    if name == "tail_forward":
        return slow("tail", p_s, p_t) + slow("forward", p_s, p_t)
    assert name == "renormalized"
    return slow("paper", [s / sum(p_s) for s in p_s], [t / sum(p_t) for t in p_t])


def random_log_probs(seed: int, positions: int = 20) -> torch.Tensor:
    """Log-probabilities of S under a softmax over a larger vocabulary, float64."""
    torch.manual_seed(seed)
    logits = torch.randn(positions, VOCABULARY, dtype=torch.float64) * 2
    return torch.log_softmax(logits, dim=-1)[:, TOKENS]


@pytest.mark.parametrize("name", DIVERGENCES)
def test_value_is_the_plain_definition(name):
    """Every divergence is, position by position, the sum that its definition writes."""
    log_s, log_t = random_log_probs(0), random_log_probs(1)
    expected = [
        slow(name, s.exp().tolist(), t.exp().tolist()) for s, t in zip(log_s, log_t, strict=True)
    ]
    assert DIVERGENCES[name](log_s, log_t).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["generalized", "forward", "tail", "tail_forward"])
def test_repaired_divergences_are_zero_and_stationary_where_student_is_teacher(name):
    """Zero value and zero gradient at p_s = p_t, and never negative anywhere else."""
    log_t = random_log_probs(1)
    log_s = log_t.clone().requires_grad_()
    value = DIVERGENCES[name](log_s, log_t)
    value.sum().backward()
    assert value.abs().max() < 1e-12
    assert log_s.grad.abs().max() < 1e-9
    elsewhere = torch.stack([DIVERGENCES[name](random_log_probs(i), log_t) for i in range(2, 40)])
    assert elsewhere.min() > 0


def test_published_loss_is_negative_at_its_minimum_which_is_teacher_over_e():
    """With one token the published loss is least at p_s = p_t / e, where it is -p_t / e."""
    p_t = 0.3
    p_s = torch.linspace(1e-4, 1, 100_001, dtype=torch.float64)
    loss = DIVERGENCES["paper"](p_s.log()[:, None], torch.full((len(p_s), 1), p_t).double().log())
    assert p_s[loss.argmin()].item() == pytest.approx(p_t / math.e, abs=2e-5)
    assert loss.min().item() == pytest.approx(-p_t / math.e, abs=1e-6)


def test_generalized_minimum_of_one_token_is_the_teacher():
    """The repair moves the minimum of one token from p_t / e to p_t."""
    p_s = torch.linspace(1e-4, 1, 100_001, dtype=torch.float64)
    log_t = torch.full((len(p_s), 1), math.log(0.3), dtype=torch.float64)
    loss = DIVERGENCES["generalized"](p_s.log()[:, None], log_t)
    assert p_s[loss.argmin()].item() == pytest.approx(0.3, abs=2e-5)


def test_renormalized_ignores_the_mass_of_the_safety_tokens():
    """Scaling all probabilities of S, of student or teacher, changes nothing; others change."""
    log_s, log_t = random_log_probs(0), random_log_probs(1)
    value = DIVERGENCES["renormalized"](log_s, log_t)
    scaled = DIVERGENCES["renormalized"](log_s - 3.0, log_t - 0.5)
    assert torch.allclose(value, scaled, atol=1e-12)
    assert not torch.allclose(
        DIVERGENCES["paper"](log_s, log_t), DIVERGENCES["paper"](log_s - 3.0, log_t - 0.5)
    )


def test_tail_stays_finite_where_the_safety_tokens_hold_all_mass():
    """No infinite or undefined value or gradient when S holds everything."""
    log_s = torch.log(torch.tensor([[0.5, 0.5]])).requires_grad_()
    log_t = torch.log(torch.tensor([[0.9, 0.1]]))
    value = DIVERGENCES["tail"](log_s, log_t)
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(log_s.grad).all()


@pytest.mark.parametrize("chunk", [256, 3, 1])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_all_tokens_are_the_kl_over_the_vocabulary(name, chunk, monkeypatch):
    """Value and gradient of reverse KL, forward KL or their sum, in one chunk or in many."""
    monkeypatch.setattr("safesteer.distill.losses._CHUNK_POSITIONS", chunk)
    torch.manual_seed(0)
    weight = torch.randn(VOCABULARY, 6)
    student, teacher = torch.randn(10, 6).requires_grad_(), torch.randn(10, 6)
    loss, metrics = distillation_loss(
        name, OutputHead(weight), student, teacher, torch.tensor(TOKENS), loss_tokens="all"
    )
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    log_s = torch.log_softmax(student @ weight.T, dim=-1)
    log_t = torch.log_softmax(teacher @ weight.T, dim=-1)
    kl_div = partial(torch.nn.functional.kl_div, log_target=True, reduction="none")
    reverse, forward = kl_div(log_t, log_s).sum(-1), kl_div(log_s, log_t).sum(-1)
    kl = {"forward": forward, "tail_forward": reverse + forward}.get(name, reverse)
    (expected,) = torch.autograd.grad(kl.sum(), student)
    assert torch.allclose(loss, kl, atol=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-5)
    assert torch.allclose(metrics["mass_student"], log_s.exp()[:, TOKENS].sum(-1), atol=1e-6)
    assert torch.allclose(metrics["mass_teacher"], log_t.exp()[:, TOKENS].sum(-1), atol=1e-6)
    assert torch.allclose(metrics["entropy"], -(log_s.exp() * log_s).sum(-1), atol=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_distillation_loss_has_gradient_of_the_definition(name):
    """Value, gradient, masses and entropy agree with the loss written with a plain log-softmax."""
    torch.manual_seed(0)
    weight, teacher_weight = torch.randn(VOCABULARY, 6), torch.randn(VOCABULARY, 6)
    student, teacher = torch.randn(10, 6).requires_grad_(), torch.randn(10, 6).requires_grad_()
    tokens = torch.tensor(TOKENS)
    loss, metrics = distillation_loss(
        name, OutputHead(weight), student, teacher, tokens, OutputHead(teacher_weight)
    )
    gradient, teacher_gradient = torch.autograd.grad(
        loss.sum(), [student, teacher], allow_unused=True
    )
    log_s = torch.log_softmax(student @ weight.T, dim=-1)
    log_t = torch.log_softmax(teacher @ teacher_weight.T, dim=-1)
    plain = DIVERGENCES[name](log_s[:, tokens], log_t[:, tokens].detach())
    (expected,) = torch.autograd.grad(plain.sum(), student)
    assert torch.allclose(loss, plain, atol=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-5)
    assert teacher_gradient is None
    assert torch.allclose(metrics["mass_student"], log_s.exp()[:, tokens].sum(-1), atol=1e-6)
    assert torch.allclose(metrics["mass_teacher"], log_t.exp()[:, tokens].sum(-1), atol=1e-6)
    assert torch.allclose(metrics["entropy"], -(log_s.exp() * log_s).sum(-1), atol=1e-5)


def test_completion_mean_counts_each_completion_the_same():
    """A long completion weighs as much as a short one: (1/B) sum of the completions' own means."""
    lengths = torch.tensor([1, 4, 2])
    values = torch.tensor([9.0, 1.0, 2.0, 3.0, 6.0, 5.0, 7.0], requires_grad=True)
    mean = completion_mean(values, lengths)
    mean.backward()
    assert mean.item() == pytest.approx((9.0 + 3.0 + 6.0) / 3)
    assert values.grad.tolist() == pytest.approx([1 / 3, *[1 / 12] * 4, *[1 / 6] * 2])
