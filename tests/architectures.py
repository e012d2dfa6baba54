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

MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_ssm": 32,
    "mamba_n_groups": 1,
    "mamba_d_state": 4,
}
# Models that cannot begin at every layer: (configuration, the layers at which they can).
UNUSUAL = {
    # The last two blocks use the keys and values of blocks 2 and 3.
    "gemma4_text": (
        {
            "num_hidden_layers": 6,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 64,
            "sliding_window": 64,
        },
        {0, 1, 2},
    ),
    # Several streams instead of one.
    "gemma3n_text": (
        {
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 64,
            "laurel_rank": 4,
        },
        {0},
    ),
    # Blocks that return a tuple.
    "falcon_h1": (MAMBA, {0}),
}


@pytest.fixture(params=[name for name in ARCHITECTURES if name in CONFIG_MAPPING])
def model(request):  # type: ignore[no-untyped-def]
    """A model of one architecture with random weights."""
    common = {"vocab_size": 64} if request.param == "gpt2" else COMMON
    return tiny(request.param, {**common, **ARCHITECTURES[request.param]})


@pytest.fixture(params=[name for name in UNUSUAL if name in CONFIG_MAPPING])
def unusual(request):  # type: ignore[no-untyped-def]
    """Such a model, and the layers that it allows."""
    values, allowed = UNUSUAL[request.param]
    return tiny(request.param, {**COMMON, **values}), allowed


def tiny(name, values):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**values))
    return model.float().eval().requires_grad_(False)
