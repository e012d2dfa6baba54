"""The streamed log-probabilities against a plain log-softmax."""

import pytest
import torch

from safesteer.models.lm_head import OutputHead

POSITIONS, WIDTH, VOCABULARY = 13, 6, 17
TOKENS = torch.tensor([0, 3, 16, 5])
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 3.0},
    "temperature": {"temperature": 0.8},
    "everything": {"bias": True, "scale": 1.7, "softcap": 5.0, "temperature": 1.6},
}


@pytest.fixture(params=[1 << 22, VOCABULARY * 4, 1], ids=["one block", "blocks", "one logit"])
def chunks(request, monkeypatch):
    """The size of a block: everything at once, a part of the vocabulary, or one token at a time."""
    monkeypatch.setattr("safesteer.models.lm_head._BLOCK_ELEMENTS", request.param)
    return request.param


def make_head(options: dict, trainable: bool) -> OutputHead:
    torch.manual_seed(0)
    weight = torch.randn(VOCABULARY, WIDTH).requires_grad_(trainable)
    bias = torch.randn(VOCABULARY).requires_grad_(trainable) if options.get("bias") else None
    return OutputHead(
        weight, bias, options.get("scale", 1.0), options.get("softcap")
    ).with_temperature(options.get("temperature", 1.0))


def plain_log_probs(head: OutputHead, hidden, weight, bias):  # type: ignore[no-untyped-def]
    """log_softmax of softcap * tanh(scale * (h W^T + b) / softcap) / temperature, in float64."""
    raw = hidden.double() @ weight.double().T
    if bias is not None:
        raw = raw + bias.double()
    raw = raw * head.scale
    if head.softcap is not None:
        raw = head.softcap * torch.tanh(raw / head.softcap)
    raw = raw / head.temperature
    log_p = torch.log_softmax(raw, dim=-1)
    return log_p[:, TOKENS], -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS.keys())
def test_log_probs_value_gradient_and_entropy(options, trainable, chunks):
    """Value, entropy and the gradients of hidden, weight and bias are those of the plain form."""
    head = make_head(options, trainable)
    hidden = torch.randn(POSITIONS, WIDTH).requires_grad_()
    upstream = torch.randn(POSITIONS, len(TOKENS))
    log_p, entropy = head.log_probs(hidden, TOKENS)
    expected, expected_entropy = plain_log_probs(head, hidden, head.weight, head.bias)
    assert torch.allclose(log_p.double(), expected, atol=2e-6)
    assert torch.allclose(entropy.double(), expected_entropy, atol=2e-6)
    assert not entropy.requires_grad
    inputs = [hidden]
    if trainable:
        inputs += [head.weight] + ([] if head.bias is None else [head.bias])
    found = torch.autograd.grad((log_p * upstream).sum(), inputs)
    wanted = torch.autograd.grad((expected * upstream).sum(), inputs)
    for gradient, reference in zip(found, wanted, strict=True):
        assert torch.allclose(gradient, reference, atol=1e-5)


def test_without_a_gradient_the_values_are_the_same(chunks):
    """The teacher's path gives the same log-probabilities."""
    head = make_head(HEADS["everything"], trainable=False)
    hidden = torch.randn(POSITIONS, WIDTH)
    with_gradient, _ = head.log_probs(hidden.requires_grad_(), TOKENS)
    assert torch.equal(head.detached_log_probs(hidden, TOKENS), with_gradient)


def test_gradient_agrees_with_finite_differences():
    """The hand-written backward is the derivative of the forward, without any autograd."""
    head = make_head(HEADS["everything"], trainable=False)
    hidden = torch.randn(3, WIDTH).requires_grad_()
    log_p, _ = head.log_probs(hidden, TOKENS)
    (gradient,) = torch.autograd.grad(log_p.sum(), hidden)
    step = 1e-5
    for row in range(3):
        for column in range(WIDTH):
            moved = hidden.detach().double().repeat(2, 1, 1)
            moved[0, row, column] += step
            moved[1, row, column] -= step
            up, down = (
                plain_log_probs(head, part, head.weight, head.bias)[0].sum() for part in moved
            )
            assert gradient[row, column].item() == pytest.approx(
                ((up - down) / (2 * step)).item(), abs=1e-4
            )


def test_no_tensor_larger_than_a_block_is_made(monkeypatch):
    """All logits are made in blocks of at most the limit, in the forward and in the backward."""
    limit = VOCABULARY * 4
    monkeypatch.setattr("safesteer.models.lm_head._BLOCK_ELEMENTS", limit)
    sizes = []
    original = OutputHead.logits

    def counted(self, hidden, tokens=slice(None)):  # type: ignore[no-untyped-def]
        result = original(self, hidden, tokens)
        if isinstance(tokens, slice):
            sizes.append(result.numel())
        return result

    monkeypatch.setattr(OutputHead, "logits", counted)
    head = make_head(HEADS["plain"], trainable=True)
    log_p, _ = head.log_probs(torch.randn(POSITIONS, WIDTH).requires_grad_(), TOKENS)
    forward = len(sizes)
    log_p.sum().backward()
    assert forward == 4 and len(sizes) == 8  # 17 tokens by 5, forward and backward
    assert max(sizes) <= limit and sum(sizes) == 2 * POSITIONS * VOCABULARY


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_bfloat16_error_is_bounded_by_the_rounding_of_one_logit(scale):
    """With bfloat16 weights log-probabilities are off by at most 2^-8 of the largest logit."""
    torch.manual_seed(0)
    weight = (torch.randn(400, 64) * scale / 8).bfloat16()
    hidden = torch.randn(200, 64).bfloat16()
    tokens = torch.arange(0, 400, 7)
    found, _ = OutputHead(weight).log_probs(hidden, tokens)
    logits = hidden.double() @ weight.double().T
    expected = torch.log_softmax(logits, dim=-1)[:, tokens]
    bound = logits.abs().amax(-1, keepdim=True) * 2**-8
    assert ((found - expected).abs() <= bound).all()


def test_a_bfloat16_token_that_holds_the_mass_has_no_rounding_of_its_own():
    """Its probability stays within one, and right where the rounding of its logit was largest."""
    torch.manual_seed(0)
    weight = (torch.randn(400, 64) / 8).bfloat16()
    hidden = (torch.randn(200, 64) / 8).bfloat16()
    hidden += 150 * weight[7]  # a logit of about 150, which bfloat16 rounds by up to a half
    log_p, _ = OutputHead(weight).with_temperature(0.5).log_probs(hidden, torch.tensor([7, 30]))
    logits = hidden.double() @ weight.double().T / 0.5
    expected = torch.log_softmax(logits, dim=-1)[:, [7, 30]]
    assert (log_p[:, 0].exp() <= 1 + 1e-6).all()
    assert (log_p[:, 0] - expected[:, 0]).abs().max() < 1e-4


def test_head_is_read_from_the_model(tiny_chat_model):
    """log_probs of hidden states are those of the model's own logits."""
    model = tiny_chat_model.model
    ids = torch.tensor([[5, 9, 200, 31, 8]])
    head = OutputHead.of(model)
    hidden = model.model(ids).last_hidden_state[0]
    log_p, _ = head.log_probs(hidden, TOKENS)
    expected = torch.log_softmax(model(ids).logits[0], dim=-1)[:, TOKENS]
    assert torch.allclose(log_p, expected, atol=1e-5)
