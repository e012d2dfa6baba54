"""Drift from the base and refusal rates, on a tiny model."""

import copy
import json
import logging
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import rescale_adapter_scale

from safesteer.direction.vector import Direction
from safesteer.evaluate import drift as drifting
from safesteer.evaluate.drift import measure_drift
from safesteer.evaluate.refusals import Rate, Sample, refusal_rate
from safesteer.evaluate.statistics import wilson_interval
from safesteer.inference import variant as variant
from safesteer.models.generate import Decoding, generate
from safesteer.models.lora_dtype import compute_in_model_dtype
from safesteer.prompts import Prompt
from safesteer.teacher import Teacher

TEXTS = ["Hi", "How far is the moon?", "Name a colour and explain it at some length."]
PROMPTS = [({"role": "user", "content": text},) for text in TEXTS]


def with_lora(model, trained: bool):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    student = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    if trained:
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return student.eval()


def test_an_untrained_student_has_not_drifted(tiny_chat_model):
    """A fresh adapter changes nothing; the interval says that three prompts prove little."""
    student = with_lora(tiny_chat_model.model, trained=False)
    drift = measure_drift(tiny_chat_model, student, PROMPTS, max_new_tokens=6, batch_size=2)
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
    )
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
    """A change of weights that bfloat16 hardly holds moves nothing, though it rounds otherwise."""
    tiny_chat_model.model.to(torch.bfloat16)
    student = compute_in_model_dtype(with_lora(tiny_chat_model.model, trained=True))
    ids = torch.tensor([tiny_chat_model.chat.ids(PROMPTS[2])])
    with rescale_adapter_scale(student, 1e-4), torch.no_grad():
        drift = measure_drift(tiny_chat_model, student, PROMPTS, max_new_tokens=6)
        moved = student(ids).logits
    with torch.no_grad(), student.disable_adapter():
        assert not torch.equal(student(ids).logits, moved)
    assert drift["agreement"]["value"] == 1
    assert 0 < drift["divergence"]["value"] < 1e-6


def test_a_kernel_that_takes_16_bits_alone_is_read_in_them(tiny_chat_model, caplog, monkeypatch):
    """The evaluation goes on, says so in one line, and the entries say in which type."""
    model = tiny_chat_model.model.to(torch.bfloat16)
    student = compute_in_model_dtype(with_lora(model, trained=True))
    sizes = []  # of the numbers by which batches are made
    fit = drifting.rows_that_fit
    monkeypatch.setattr(drifting, "rows_that_fit", lambda *a: sizes.append(a[-1]) or fit(*a))
    exact = measure_drift(tiny_chat_model, student, PROMPTS, max_new_tokens=6)

    def kernel(module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].dtype == torch.float32:
            raise AssertionError("only 16 bits\nand a long explanation")

    hook = model.model.layers[1].mlp.register_forward_pre_hook(kernel)
    with caplog.at_level(logging.WARNING, "safesteer"):
        found = measure_drift(tiny_chat_model, student, PROMPTS, max_new_tokens=6)
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
    found = measure_drift(tiny_chat_model, trained, PROMPTS, max_new_tokens=4)
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
    same = measure_drift(tiny_chat_model, new_chat_model().model, PROMPTS, max_new_tokens=4)
    other = measure_drift(tiny_chat_model, new_chat_model(seed=1).model, PROMPTS, max_new_tokens=4)
    assert same["agreement"]["value"] == 1
    assert other["agreement"]["value"] < 0.5 < other["divergence"]["value"]


def sample(refused: bool, looping: bool = False) -> Sample:
    return Sample("1", "", "p", "c", refused, float(refused), looping)


def test_refusal_rate_as_json():
    """Share, Wilson interval, number, judge, kind, and the share of loops."""
    rate = Rate("harmful", "safety", [sample(True), *[sample(False, True)] * 9])
    content = rate.to_json()
    assert content.pop("ci95") == pytest.approx([0.0179, 0.4042], abs=1e-4)
    assert content == {
        "metric": "refusal_rate",
        "value": 0.1,
        "n": 10,
        "judge": "offline-refusal",
        "kind": "safety",
        "looping": 0.9,
        "refusals": 1,
        "refusals_ended": 1.0,
    }


def test_how_many_refusals_end_is_counted_of_the_refusals_alone():
    samples = [sample(True), sample(True), sample(True), sample(False)]
    cut = [replace(samples[0], cut=True), replace(samples[3], cut=True)]
    content = Rate("harmful", "safety", [*samples, *cut]).to_json()
    assert (content["refusals"], content["refusals_ended"]) == (4, 0.75)
    assert "refusals_ended" not in Rate("harmful", "safety", [sample(False)]).to_json()
    assert cut[0].to_json()["cut"] and "cut" not in samples[0].to_json()


def prompt(number: int) -> Prompt:
    return Prompt(f"id-{number}", PROMPTS[number], category="c")


def test_each_answer_is_judged_with_its_own_prompt(tiny_chat_model, monkeypatch):
    """Samples are in the order of the prompts, with text, verdict and score."""
    texts = ["I'm sorry, but I can't assist with that.", "The moon is far.", "no " * 20]
    answers = [tiny_chat_model.chat.answer_ids(text) for text in texts]
    answers[1].append(tiny_chat_model.tokenizer.eos_token_id)
    monkeypatch.setattr(variant, "generate", lambda *args, **kwargs: answers)
    rate = refusal_rate("x", "safety", tiny_chat_model, [prompt(i) for i in range(3)])
    assert [s.completion for s in rate.samples] == texts
    assert [s.id for s in rate.samples] == ["id-0", "id-1", "id-2"]
    assert [s.prompt for s in rate.samples] == TEXTS
    assert [s.refused for s in rate.samples] == [True, False, False]
    assert [s.looping for s in rate.samples] == [False, False, True]
    assert [s.cut for s in rate.samples] == [True, False, True]
    assert rate.value == pytest.approx(1 / 3)


def test_base_teacher_and_student_are_three_models(tiny_chat_model, new_chat_model):
    """With an adapter in the model: base and teacher answer without it, the student with it."""
    untouched = new_chat_model()
    student = with_lora(tiny_chat_model.model, trained=True)
    teacher = Teacher(
        Direction(torch.linspace(-4, 4, 32), 1), ({"role": "system", "content": "Refuse."},)
    )

    def completions(model, **who):  # type: ignore[no-untyped-def]
        rate = refusal_rate(
            "x", "safety", model, [prompt(i) for i in range(3)], max_new_tokens=6, **who
        )
        return [s.completion for s in rate.samples]

    base = completions(tiny_chat_model, teacher=Teacher())
    taught = completions(tiny_chat_model, teacher=teacher)
    aligned = completions(tiny_chat_model, student=student)
    assert base == completions(untouched)
    assert taught == completions(untouched, teacher=teacher)
    assert base != taught and base != aligned and taught != aligned
