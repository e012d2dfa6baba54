"""LoRA in the model's type: what is computed stays, what is stored stays too."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from safesteer.models.lora_dtype import compute_in_model_dtype


def _adapted(model):
    torch.manual_seed(0)
    student = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return student


@pytest.fixture
def tiny_model(tiny_chat_model):
    return tiny_chat_model.model


@pytest.fixture
def ids():
    return torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(0))


def test_float32_models_compute_as_before(tiny_model, ids):
    student = _adapted(copy.deepcopy(tiny_model).float())
    before = student(input_ids=ids).logits
    assert torch.equal(compute_in_model_dtype(student)(input_ids=ids).logits, before)


def test_bfloat16_models_keep_float32_factors_and_gradients(tiny_model, ids):
    student = _adapted(copy.deepcopy(tiny_model).to(torch.bfloat16))
    before = student(input_ids=ids).logits.float()
    after = compute_in_model_dtype(student)(input_ids=ids).logits.float()
    # Two roundings to bfloat16 more, of 8 bits each.
    assert (after - before).norm() <= 0.02 * before.norm()
    after.sum().backward()
    factors = {n: p for n, p in student.named_parameters() if "lora_" in n}
    assert factors and all(p.dtype == torch.float32 for p in factors.values())
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in factors.values())
    assert any(p.grad.abs().sum() > 0 for p in factors.values())


def test_the_adapter_is_saved_as_peft_would(tiny_model, ids, tmp_path):
    base = copy.deepcopy(tiny_model).float()
    student = compute_in_model_dtype(_adapted(base)).eval()
    expected = student(input_ids=ids).logits
    student.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(tiny_model).float(), tmp_path).eval()
    assert torch.allclose(loaded(input_ids=ids).logits, expected, atol=1e-6)
