"""Drift from the base, on a tiny model."""

import copy
import json
import logging

import pytest
import torch
from peft.helpers import rescale_adapter_scale
from tiny import with_lora

from safesteer.evaluate import drift as drifting
from safesteer.evaluate.drift import measure_drift
from safesteer.evaluate.statistics import wilson_interval
from safesteer.models.generate import Decoding, generate
from safesteer.models.lora_dtype import compute_in_model_dtype

TEXTS = ["Hi", "How far is the moon?", "Name a colour and explain it at some length."]
PROMPTS = [({"role": "user", "content": text},) for text in TEXTS]


def test_an_untrained_student_has_not_drifted(tiny_chat_model):
    """A fresh adapter changes nothing; the interval says that three prompts prove little."""
    student = with_lora(tiny_chat_model.model, trained=False)
    drift = measure_drift(
        tiny_chat_model, student, PROMPTS, max_new_tokens=6, batch_size=2
    ).to_json()
    assert drift["agreement"]["value"] == 1
    assert drift["agreement"]["ci95"] == list(wilson_interval(3, 3))
    assert drift["divergence"]["value"] == pytest.approx(0, abs=1e-6)
    assert drift["agreement"]["n"] == 3
    assert json.loads(json.dumps(drift, allow_nan=False)) == drift


@pytest.mark.parametrize("batch_size", [1, 32])
def test_drift_is_agreement_and_kl_on_the_bases_answers(
    batch_size, tiny_chat_model, new_chat_model
):
    """The mean over prompts of the mean over tokens, computed prompt by prompt without padding."""
    student = with_lora(tiny_chat_model.model, trained=True)
    base = new_chat_model()  # the same weights, without an adapter
    drift = measure_drift(
        tiny_chat_model, student, PROMPTS, max_new_tokens=6, batch_size=batch_size
    ).to_json()
    agreements, divergences = [], []
    for messages in PROMPTS:
        ids = base.chat.ids(messages)
        (answer,) = generate(base.model, base.tokenizer, [ids], Decoding(6))
        log_0, log_s = (
            torch.log_softmax(
                model(torch.tensor([ids + answer])).logits[0, -len(answer) - 1 : -1], dim=-1
            )
            for model in (base.model, student)
        )
        agreements.append((log_0.argmax(-1) == log_s.argmax(-1)).float().mean().item())
        divergences.append(
            torch.nn.functional.kl_div(log_s, log_0, log_target=True, reduction="batchmean").item()
        )
    assert drift["agreement"]["value"] == pytest.approx(sum(agreements) / 3)
    assert drift["agreement"]["value"] < 1
    assert drift["divergence"]["value"] == pytest.approx(sum(divergences) / 3, rel=1e-3)


def test_rounding_is_not_drift(tiny_chat_model):
    """A change below bfloat16's precision is no drift, though outputs round differently."""
    tiny_chat_model.model.to(torch.bfloat16)
    student = compute_in_model_dtype(with_lora(tiny_chat_model.model, trained=True))
    ids = torch.tensor([tiny_chat_model.chat.ids(PROMPTS[2])])
    with rescale_adapter_scale(student, 1e-4), torch.no_grad():
        drift = measure_drift(tiny_chat_model, student, PROMPTS, max_new_tokens=6).to_json()
        moved = student(ids).logits
    with torch.no_grad(), student.disable_adapter():
        assert not torch.equal(student(ids).logits, moved)
    assert drift["agreement"]["value"] == 1
    assert 0 < drift["divergence"]["value"] < 1e-6


def test_with_a_kernel_for_16_bits_only_drift_is_measured_in_them(
    tiny_chat_model, caplog, monkeypatch
):
    """The evaluation continues with a warning, and the entries name the type."""
    model = tiny_chat_model.model.to(torch.bfloat16)
    student = compute_in_model_dtype(with_lora(model, trained=True))
    sizes = []  # bytes per number that batches are sized by
    fit = drifting.rows_that_fit
    monkeypatch.setattr(drifting, "rows_that_fit", lambda *a: sizes.append(a[-1]) or fit(*a))
    exact = measure_drift(tiny_chat_model, student, PROMPTS, max_new_tokens=6).to_json()

    def kernel(module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].dtype == torch.float32:
            raise AssertionError("only 16 bits\nand a long explanation")

    hook = model.model.layers[1].mlp.register_forward_pre_hook(kernel)
    with caplog.at_level(logging.WARNING, "safesteer"):
        found = measure_drift(tiny_chat_model, student, PROMPTS, max_new_tokens=6).to_json()
    hook.remove()
    assert sizes == [4, 2]
    (record,) = caplog.records
    assert record.getMessage().endswith("the model fails: only 16 bits")
    for name, entry in found.items():
        assert (exact[name]["dtype"], entry["dtype"]) == ("float32", "bfloat16")
    assert found["divergence"]["value"] == pytest.approx(exact["divergence"]["value"], rel=0.2)
    assert found["divergence"]["value"] != exact["divergence"]["value"]
    assert not any(p.dtype == torch.float32 for n, p in model.named_parameters() if "lora" not in n)


def test_drift_of_a_trained_model_in_16_bits(tiny_chat_model, new_chat_model):
    """Both models are read in float32, each with its own weights."""
    trained = new_chat_model(seed=1).model
    for model in (tiny_chat_model.model, trained):
        model.to(torch.bfloat16)
    found = measure_drift(tiny_chat_model, trained, PROMPTS, max_new_tokens=4).to_json()
    ids = [tiny_chat_model.chat.ids(messages) for messages in PROMPTS]
    answers = generate(tiny_chat_model.model, tiny_chat_model.tokenizer, ids, Decoding(4))
    wide = [copy.deepcopy(model).float() for model in (tiny_chat_model.model, trained)]
    means = []
    for prompt, answer in zip(ids, answers, strict=True):
        log_0, log_s = (
            model(torch.tensor([prompt + answer])).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
            for model in wide
        )
        means.append((log_0.exp() * (log_0 - log_s)).sum(-1).mean().item())
    assert found["divergence"]["value"] == pytest.approx(sum(means) / 3, rel=1e-4)
    assert found["divergence"]["dtype"] == "float32"


def test_drift_of_a_model_with_all_weights_trained(tiny_chat_model, new_chat_model):
    """A separate model is compared with the base; one with the same weights has not drifted."""
    same = measure_drift(
        tiny_chat_model, new_chat_model().model, PROMPTS, max_new_tokens=4
    ).to_json()
    other = measure_drift(
        tiny_chat_model, new_chat_model(seed=1).model, PROMPTS, max_new_tokens=4
    ).to_json()
    assert same["agreement"]["value"] == 1
    assert other["agreement"]["value"] < 0.5 < other["divergence"]["value"]
