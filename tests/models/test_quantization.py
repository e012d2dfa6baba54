"""Bases in fewer bits: loaded, trained and handed on, or refused in one line."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny import JOB_OF_SECONDS
from transformers import GptOssConfig, GptOssForCausalLM

import safesteer
from safesteer import distributed
from safesteer.config.load import load_settings
from safesteer.config.settings import ModelSettings, TrainSettings
from safesteer.distill.lora import with_lora
from safesteer.errors import InputError
from safesteer.export.commands import commands
from safesteer.export.formats import export
from safesteer.inference.variant import ModelVariant
from safesteer.models import quantization as quantize
from safesteer.models.base_weights import base_weights
from safesteer.models.hidden_states import hidden_states
from safesteer.models.lm_head import OutputHead
from safesteer.models.load import describe, load_model, save_model
from safesteer.models.loading_code import loading_code
from safesteer.models.upcast import in_float32
from safesteer.pipeline.preflight import open_run

BITS = ["8bit", "4bit"]
WIDE = {"hidden_size": 64, "intermediate_size": 128}  # blocks of 64 weights share a scale
IDS = torch.tensor([[5, 9, 40, 7, 33, 21]])


@pytest.fixture
def folder(new_chat_model, tmp_path):
    """A tiny Llama."""
    tiny = new_chat_model(**WIDE)
    save_model(tiny.model, tiny.tokenizer, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def load(folder):
    """Loads it in some bits."""
    pytest.importorskip("bitsandbytes", "0.46.1")

    def loaded(bits, dtype="float32"):
        return load_model(ModelSettings(id=str(folder), quantization=bits, dtype=dtype))

    return loaded


def _say_stored(folder, **how):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": how}))


# Loading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
@torch.no_grad()
def test_only_linear_layers_inside_the_blocks_are_rounded(load, bits):
    whole, rounded = load("none"), load(bits)
    model = rounded.model
    assert torch.equal(model.lm_head.weight, whole.model.lm_head.weight)
    assert torch.equal(model.model.norm.weight, whole.model.model.norm.weight)
    assert quantize.is_quantized(model.model.layers[0].mlp.up_proj.weight)
    facts = describe(rounded)
    assert facts == {**describe(whole), "quantization": bits}
    assert model.get_memory_footprint() < 0.5 * whole.model.get_memory_footprint()
    # What reads the output matrix itself agrees with the model.
    tokens = torch.arange(20)
    found, _ = OutputHead.of(model).log_probs(
        hidden_states(model, IDS, torch.ones_like(IDS))[0], tokens
    )
    logits = model(IDS).logits[0]
    torch.testing.assert_close(found, logits.log_softmax(-1)[:, tokens], atol=1e-4, rtol=0)
    assert not torch.allclose(logits, whole.model(IDS).logits[0], atol=1e-2)
    assert (
        ModelVariant("base", whole, whole.model).identity
        != ModelVariant("base", rounded, model).identity
    )


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_student_starts_as_its_base_and_learns_in_float32(load, bits, dtype):
    """Also in training mode, where bitsandbytes would compute something else on the CPU."""
    model = load(bits, dtype).model
    with torch.no_grad():
        before = model(IDS).logits
    student = with_lora(model, TrainSettings(lora={"r": 4}), seed=0).train()
    logits = student(IDS).logits
    assert torch.equal(logits, before)
    logits.float().logsumexp(-1).sum().backward()
    factors = {n: p for n, p in student.named_parameters() if p.requires_grad}
    assert factors and all("lora_" in name for name in factors)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in factors.values())
    with torch.no_grad():
        for name, parameter in factors.items():
            if "lora_B" in name:
                parameter.fill_(0.1)
        assert not torch.allclose(student(IDS).logits, before)
        with base_weights(student):
            assert torch.equal(student.eval()(IDS).logits, before)


@torch.no_grad()
def test_drift_of_a_base_in_4_bits_is_read_in_float32(load):
    """With the values of its own weights, and afterwards as before; in 8 bits it stays as it is."""
    model = load("4bit", "bfloat16").model
    mask = torch.ones_like(IDS)
    plain = hidden_states(model, IDS, mask)
    with in_float32(model) as dtype:
        found = hidden_states(model, IDS, mask)
    assert dtype == found.dtype == torch.float32
    assert torch.equal(hidden_states(model, IDS, mask), plain)
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.weight.quant_state.dtype = torch.float32  # of the weights made whole
    exact = hidden_states(model.dequantize(dtype=torch.float32).float(), IDS, mask)
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=0)
    assert not torch.allclose(plain.float(), exact, atol=1e-3)
    with in_float32(load("8bit", "bfloat16").model) as dtype:
        assert dtype == torch.bfloat16


@torch.no_grad()
def test_codes_that_are_kept_in_16_bits_are_not_widened(load):
    """Folders for QLoRA with FSDP keep the codes of 4 bits in numbers of bfloat16."""
    model = load("4bit", "bfloat16").model
    mask = torch.ones_like(IDS)
    with in_float32(model):
        expected = hidden_states(model, IDS, mask)
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            codes = module.weight.data.flatten()
            module.weight.data = codes.view(torch.bfloat16)[:, None]
    with in_float32(model):
        assert torch.equal(hidden_states(model, IDS, mask), expected)


@pytest.mark.parametrize("bits", BITS)
@torch.no_grad()
def test_made_whole_a_model_computes_the_same(load, bits, tmp_path):
    model = load(bits).model
    before = model(IDS).logits
    whole = quantize.dequantized(model)
    assert quantize.quantization_of(whole) is None
    assert type(whole.model.layers[0].mlp.up_proj) is torch.nn.Linear
    torch.testing.assert_close(whole(IDS).logits, before, atol=1e-4, rtol=0)
    whole.save_pretrained(tmp_path / "whole")
    assert "quantization_config" not in (tmp_path / "whole" / "config.json").read_text()


@pytest.mark.parametrize("bits", BITS)
@torch.no_grad()
def test_a_folder_stored_in_few_bits_is_loaded_as_it_is(load, bits, tmp_path):
    rounded = load(bits)
    save_model(rounded.model, rounded.tokenizer, tmp_path / "stored")
    assert quantize.stored_quantization(tmp_path / "stored") == bits
    settings = ModelSettings(id=str(tmp_path / "stored"), dtype="float32")
    again = load_model(settings)
    assert describe(again)["quantization"] == bits
    assert torch.equal(again.model(IDS).logits, rounded.model(IDS).logits)
    with pytest.raises(InputError, match="every weight"):
        load_model(settings, for_full_training=True)
    with pytest.raises(InputError, match=f"stored as {bits} already"):
        load_model(settings.model_copy(update={"quantization": "4bit"}))


@torch.no_grad()
def test_fp8_weights_are_made_whole(folder):
    weights = load_file(folder / "model.safetensors")
    expected = load_model(ModelSettings(id=str(folder), dtype="float32")).model
    for name in list(weights):
        if "proj" in name:
            scale = weights[name].abs().max() / 448  # the largest number of the type
            weights[name] = (weights[name] / scale).to(torch.float8_e4m3fn)
            weights[name + "_scale_inv"] = scale.reshape(1, 1)
            expected.get_parameter(name).copy_(weights[name].float() * scale)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    _say_stored(folder, quant_method="fp8", weight_block_size=[128, 128])
    found = load_model(ModelSettings(id=str(folder), dtype="float32"))
    assert describe(found)["quantization"] == "none"
    torch.testing.assert_close(found.model(IDS).logits, expected(IDS).logits, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_mxfp4_weights_are_made_whole(tokenizer, tmp_path):
    """As gpt-oss is published."""
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=2,
        num_experts_per_tok=2,
    )
    save_model(GptOssForCausalLM(config), tokenizer, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in [n for n in weights if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, inner, outer = weights.pop(name).shape
        codes = torch.randint(0, 256, (experts, outer, inner // 32, 16), dtype=torch.uint8)
        weights[name + "_blocks"] = codes
        weights[name + "_scales"] = torch.full(codes.shape[:3], 125, dtype=torch.uint8)  # 2 ** -2
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    _say_stored(tmp_path, quant_method="mxfp4", modules_to_not_convert=["lm_head"])
    model = load_model(ModelSettings(id=str(tmp_path), dtype="float32")).model
    found = model.model.layers[0].mlp.experts.down_proj
    assert found.shape == (2, 32, 32)
    assert set(found.abs().unique().tolist()) <= {n / 4 for n in (0, 0.5, 1, 1.5, 2, 3, 4, 6)}
    assert torch.isfinite(model(IDS).logits).all()


# The whole job ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_the_whole_job_and_its_exports(load, bits, folder, new_prompt_sets, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"model": {"quantization": bits, "dtype": "bfloat16"}}))
    run = safesteer.align(
        str(folder),
        tmp_path / "run",
        config=config,
        prompts=new_prompt_sets(4, 2),
        **JOB_OF_SECONDS,
    )
    assert all(entry["status"] == "done" for entry in run.manifest["stages"].values())
    assert run.settings.model.quantization == bits
    entries = json.loads((run.path / "eval" / "aligned.json").read_text())["benchmarks"]
    assert entries["divergence"]["value"] > 0
    factors = load_file(run.path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in factors.values()} == {torch.float32}
    # Not only stored as float32: TRL rounds the adapters of such bases to bfloat16.
    assert any(not torch.equal(t, t.bfloat16().float()) for t in factors.values())
    for name in ("merged", "adapter"):
        export(run.path, name, tmp_path / name)
    assert "quantization_config" not in (tmp_path / "merged" / "config.json").read_text()
    with pytest.raises(InputError, match="--format teacher"):
        export(run.path, "steered", tmp_path / "steered")
    code = loading_code(run.path, run.settings.model)
    assert any(f"load_in_{bits}=True" in line for line in code)
    values: dict[str, object] = {}
    exec("\n".join(code), values)
    assert quantize.quantization_of(values["base"]) == bits
    lines = commands(run.path, run.settings)
    assert "--lora-modules" not in lines and "--format steered" not in lines


# Refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "unheard-of"])
def test_formats_that_cannot_be_trained_are_named_before_any_work(folder, method, tmp_path):
    _say_stored(folder, quant_method=method, bits=4)
    settings = load_settings("default", model={"id": str(folder)})
    with pytest.raises(InputError, match=f"stored as {method}.*--quantization 4bit"):
        open_run(tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=f"stored as {method}"):
        load_model(str(folder))


def test_a_text_tower_that_is_stored_so_counts(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({"text_config": {"quantization_config": {"quant_method": "awq"}}}))
    assert quantize.stored_quantization(folder) == "awq"


def test_all_weights_of_a_quantized_base_cannot_be_trained(folder):
    with pytest.raises(InputError, match=r"'full' trains every weight.*8bit.*train\.method=lora"):
        load_settings(
            "default",
            model={"id": str(folder), "quantization": "8bit"},
            train={"method": "full"},
        )


def test_weights_in_few_bits_are_not_spread(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "is_bitsandbytes_available", lambda: True)
    monkeypatch.setattr(distributed, "layout", lambda: "fsdp")
    settings = load_settings("default", model={"id": str(folder), "quantization": "4bit"})
    with pytest.raises(InputError, match="4bit cannot be spread"):
        open_run(tmp_path / "run", settings)


def test_without_bitsandbytes_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr(quantize, "is_bitsandbytes_available", lambda: False)
    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"is not installed\. Try: pip install 'safesteer\[quant"):
        load_model(ModelSettings(id=str(folder), quantization="4bit"))


def test_a_device_that_bitsandbytes_does_not_know(monkeypatch):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(bitsandbytes, "supported_torch_devices", {"cuda"})
    with pytest.raises(InputError, match="no 4bit for the device cpu"):
        quantize.check_device(torch.device("cpu"), "4bit")


def test_gguf_files_and_adapters_stay_as_they_are(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"GGUF file.*dequantized"):
        load_model(ModelSettings(id=str(path), quantization="4bit"))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}')
    with pytest.raises(InputError, match="holds an adapter"):
        load_model(ModelSettings(id=str(tmp_path), quantization="4bit"))
