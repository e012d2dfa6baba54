"""The whole job on a tiny random model of every architecture; docs/models.md is made from here.

SAFESTEER_WRITE_DOCS=1 pytest tests/test_architectures.py writes the table.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import JOB_OF_SECONDS
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

import safesteer
from safesteer.export.formats import export
from safesteer.models.hidden_states import hidden_states
from safesteer.models.layers import find_blocks, text_tower_name
from safesteer.models.upcast import in_float32

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_ssm": 64,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_d_conv": 4,
    "mamba_chunk_size": 16,
}
MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
GEMMA = {"query_pre_attn_scalar": 8, "sliding_window": 64}
# transformers' model type: (models that use it, what its configuration needs to be tiny).
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama 2, 3; SmolLM 1, 2", {}),
    "qwen2": ("Qwen 2, 2.5", {}),
    "qwen3": ("Qwen 3", {}),
    "qwen3_5_text": ("Qwen 3.5 (linear and full attention)", LINEAR),
    "qwen3_moe": ("Qwen 3 MoE", {**EXPERTS, "decoder_sparse_step": 1}),
    "qwen3_next": (
        "Qwen 3 Next (linear and full attention, experts)",
        {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16},
    ),
    "gemma2": ("Gemma 2", GEMMA),
    "gemma3_text": ("Gemma 3, text", GEMMA),
    "gemma4_text": ("Gemma 4, text", {"sliding_window": 64}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "ministral3": ("Ministral 3", {}),
    "mixtral": ("Mixtral", EXPERTS),
    "phi": ("Phi 1, 2", {}),
    "phi3": ("Phi 3, 4", {}),
    "smollm3": ("SmolLM 3", {}),
    "olmo2": ("OLMo 2", {}),
    "olmo3": ("OLMo 3", {"sliding_window": 64}),
    "granite": ("Granite 3", {"logits_scaling": 3.0}),
    "granitemoehybrid": (
        "Granite 4 (state space and attention)",
        {
            **EXPERTS,
            **MAMBA,
            "shared_intermediate_size": 32,
            "layer_types": ["mamba", "attention", "mamba", "attention"],
        },
    ),
    "gpt_oss": ("gpt-oss", {**EXPERTS, "sliding_window": 64}),
    "deepseek_v3": (
        "DeepSeek V3, R1",
        {
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 16,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "cohere2": ("Command R7B", {}),
    "exaone4": ("EXAONE 4", {}),
    "glm4": ("GLM 4", {}),
    "hunyuan_v1_dense": ("Hunyuan", {}),
    "stablelm": ("StableLM", {}),
    "falcon_h1": ("Falcon H1 (state space beside attention)", MAMBA),
    "jamba": (
        "Jamba (state space and attention, experts)",
        {
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "use_mamba_kernels": False,
            "mamba_d_state": 8,
        },
    ),
    "bamba": ("Bamba (state space and attention)", {**MAMBA, "attn_layer_indices": [1, 3]}),
    "lfm2": (
        "LFM 2 (convolutions and attention)",
        {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    ),
    "gemma3n_text": (
        "Gemma 3n, text (shared keys and values)",
        {
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 64,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 320,
            "laurel_rank": 4,
        },
    ),
    "gpt2": ("GPT-2", {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512}),
}


# Models that also see: (models, the text tower's configuration, the vision tower's, more).
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
SEEING: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "qwen2_5_vl": (
        "Qwen 2.5 VL",
        MROPE,
        {"depth": 4, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 32},
        {},
    ),
    "qwen3_vl": (
        "Qwen 3 VL",
        MROPE,
        {
            "depth": 4,
            "hidden_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [1],
        },
        {},
    ),
    "qwen3_5": (
        "Qwen 3.5, with its vision tower",
        LINEAR,
        {"depth": 4, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 32},
        {},
    ),
    "gemma3": ("Gemma 3, with its vision tower", GEMMA, {}, {"mm_tokens_per_image": 4}),
    "llava": ("Llava 1.5", {"model_type": "llama"}, {"model_type": "clip_vision_model"}, {}),
    "mistral3": ("Mistral Small 3.1", {"model_type": "mistral"}, {"model_type": "pixtral"}, {}),
    "smolvlm": ("SmolVLM", {"model_type": "llama"}, {}, {}),
    "mllama": ("Llama 3.2 Vision", {"cross_attention_layers": [2]}, {}, {}),
}


@pytest.fixture(scope="module")
def sections(new_prompt_sets: Callable[[int, int], dict[str, str]]) -> dict[str, dict[str, Any]]:
    """Settings of a job of seconds."""
    return {"prompts": new_prompt_sets(4, 2), **JOB_OF_SECONDS}


def save_tiny(name: str, tokenizer: Any, folder: Path) -> torch.nn.Module:
    """A model of four layers with random weights, saved with the tokenizer.

    A vision tower has as many, so that its list of blocks could be taken for the text's.
    """
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
    }
    values = {"vocab_size": len(tokenizer), **ids, **({} if name == "gpt2" else sizes)}
    torch.manual_seed(0)
    if name in SEEING:
        _, text, vision, more = SEEING[name]
        config = CONFIG_MAPPING[name](
            text_config={**values, **text}, vision_config={**VISION, **vision}, **more
        )
        model = AutoModelForImageTextToText.from_config(config).float()
    else:
        config = CONFIG_MAPPING[name](**{**values, **ARCHITECTURES[name][1]})
        model = AutoModelForCausalLM.from_config(config).float()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


ran: dict[str, str] = {}


@pytest.mark.parametrize("name", [*ARCHITECTURES, *SEEING])
def test_the_whole_job_runs(name, tokenizer, sections, tmp_path):
    """Direction, tokens, training, evaluation, report; the adapter changes the model."""
    if name not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    model = save_tiny(name, tokenizer, tmp_path / "model")
    assert len(find_blocks(model)) == 4
    run = safesteer.align(str(tmp_path / "model"), tmp_path / "run", **sections)
    stages = run.manifest["stages"]
    assert list(stages) == ["direction", "tokens", "train", "evaluate", "report"]
    assert all(entry["status"] == "done" for entry in stages.values())
    entries = json.loads((tmp_path / "run" / "eval" / "aligned.json").read_text())["benchmarks"]
    assert entries["divergence"]["value"] > 0
    if name in SEEING:
        only_the_text_tower_has_changed(model, run, tmp_path / "merged")
    ran[name] = type(model).__name__


@pytest.mark.parametrize("name", [*ARCHITECTURES, *SEEING])
def test_weights_of_16_bits_can_compute_in_float32(name, tokenizer, tmp_path):
    """As a copy in float32 does, wherever a model keeps its weights; afterwards as before."""
    if name not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    model = save_tiny(name, tokenizer, tmp_path).eval().to(torch.bfloat16)
    whole = copy.deepcopy(model).float()
    for part, same in zip(whole.modules(), model.modules(), strict=True):
        if isinstance(part, torch.nn.Embedding):  # Gemma's scales are of the embeddings' type
            part.register_forward_hook(lambda _, inputs, out, same=same: same(*inputs).float())
    ids = torch.arange(5, 21).reshape(2, 8)
    with torch.no_grad():
        plain = hidden_states(model, ids, torch.ones_like(ids))
        with in_float32(model):
            found = hidden_states(model, ids, torch.ones_like(ids))
        again = hidden_states(model, ids, torch.ones_like(ids))
        expected = hidden_states(whole, ids, torch.ones_like(ids))
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.1 * (plain.float() - expected).abs().max()
    assert torch.equal(again, plain)


def only_the_text_tower_has_changed(model: Any, run: Any, folder: Path) -> None:
    """The merged weights load with the class that they had; those of the vision tower are equal."""
    assert all("text_model" in n or "language_model" in n for n in adapted(run.path))
    export(run.path, "merged", folder)
    merged = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(merged) is type(model)
    tower = text_tower_name(model)
    own = {n for n, _ in model.named_parameters() if n.startswith(tower)}
    assert 0 < len(own) < len(list(model.named_parameters()))
    changed = {
        name
        for name, parameter in merged.named_parameters()
        if not torch.equal(parameter, model.get_parameter(name))
    }
    assert changed and changed <= own


def adapted(run: Path) -> list[str]:
    """Names of the weights in a run's adapter."""
    return list(load_file(run / "adapter" / "adapter_model.safetensors"))


def test_the_table_in_the_docs_is_what_ran():
    """docs/models.md names each architecture that went through, by its class."""
    if len(ran) < len(ARCHITECTURES) + len(SEEING):
        pytest.skip("not all architectures were run")
    models = {name: entry[0] for name, entry in [*ARCHITECTURES.items(), *SEEING.items()]}
    rows = [f"| {models[name]} | `{name}` | `{kind}` |" for name, kind in ran.items()]
    table = "\n".join(["| models | type | class |", "|---|---|---|", *rows])
    text = DOCS.read_text("utf-8")
    start, end = (text.index(f"<!-- {mark} of the table -->") for mark in ("start", "end"))
    start += len("<!-- start of the table -->\n")
    if os.environ.get("SAFESTEER_WRITE_DOCS"):
        DOCS.write_text(text[:start] + table + "\n" + text[end:], "utf-8")
    else:
        assert text[start:end].strip() == table
