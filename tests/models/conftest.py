"""A tiny model with random weights of each architecture."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

COMMON = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 4},
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window": 4},
    "mistral": {"sliding_window": 4},
    "phi3": {},
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64},
    "olmo2": {},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.25},
    "mixtral": EXPERTS,
    "qwen3_moe": {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
}


@pytest.fixture(params=[name for name in ARCHITECTURES if name in CONFIG_MAPPING])
def model(request):  # type: ignore[no-untyped-def]
    """A model of one architecture with random weights."""
    common = {} if request.param == "gpt2" else COMMON
    torch.manual_seed(0)
    config = CONFIG_MAPPING[request.param](
        **{"vocab_size": 64, **common, **ARCHITECTURES[request.param]}
    )
    return AutoModelForCausalLM.from_config(config).float().eval().requires_grad_(False)
