"""Export of the aligned model as one GGUF file for llama.cpp, Ollama and others.

Written with llama.cpp's `gguf` package, whose table renames the tensors. llama.cpp rotates
neighboring pairs where transformers rotates halves, so that the rows of Llama's queries and keys
are reordered. To quantize the file, use llama.cpp's `llama-quantize`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from safesteer.errors import InputError, SafeSteerError
from safesteer.export import llama_cpp, merged
from safesteer.export.gguf_tokenizer import split_name, write_tokenizer
from safesteer.export.source import Source
from safesteer.export.verify import Candidate
from safesteer.models.files import short_name
from safesteer.models.layers import text_config
from safesteer.models.weights import load_weights

# transformers' model type: llama.cpp's architecture.
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
_ROPE_TYPES = ("default", "llama3")
_FILE_TYPES = {
    torch.float32: (gguf.LlamaFileType.ALL_F32, gguf.GGMLQuantizationType.F32),
    torch.float16: (gguf.LlamaFileType.MOSTLY_F16, gguf.GGMLQuantizationType.F16),
    torch.bfloat16: (gguf.LlamaFileType.MOSTLY_BF16, gguf.GGMLQuantizationType.BF16),
}
_TRY = "Try: --format merged, then llama.cpp's convert_hf_to_gguf.py"


def write(source: Source, target: Path, dtype: torch.dtype) -> None:
    """Write metadata, tokenizer, chat template and weights; norms stay in float32.

    Raises InputError for an architecture or a tokenizer that cannot be written.
    """
    config = text_config(source.variant.model.model)
    require_supported(config)
    split = split_name(source.tokenizer, source.base if source.kind == "gguf" else None)
    write_model(source, merged.aligned_model(source), target, dtype, split)


def write_model(source: Source, model: Any, target: Path, dtype: torch.dtype, split: str) -> None:
    """Write a model with the source's tokenizer, whose split before BPE llama.cpp calls `split`."""
    config = text_config(model)
    writer = gguf.GGUFWriter(target, architecture_name(config))
    try:
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(f"{short_name(source.settings.id)}-safesteer")
        writer.add_file_type(_FILE_TYPES[dtype][0])
        rows = model.get_output_embeddings().weight.shape[0]
        _write_configuration(writer, config, rows)
        write_tokenizer(writer, source.tokenizer, rows, split)
        write_tensors(writer, _tensors(model, config), dtype)
    finally:
        writer.close()


def read(source: Source, target: Path) -> Candidate:
    """Load the file with transformers, and with llama.cpp where that is installed.

    transformers does not read Llama 3's RoPE scaling and the width of Qwen 3's heads from the
    file; they are set from the run. llama.cpp reads both.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    where: dict[str, Any] = {"gguf_file": target.name}
    config = AutoConfig.from_pretrained(target.parent, **where)
    own = text_config(source.variant.model.model)
    if own.rope_parameters["rope_type"] != "default":
        config.rope_parameters = own.rope_parameters
    if own.model_type == "qwen3":
        config.head_dim = own.head_dim
    model = load_weights(
        AutoModelForCausalLM, target.parent, config=config, dtype=torch.float32, **where
    )
    candidate = Candidate.of(model, target.parent, **where)
    if not llama_cpp.is_installed():
        return candidate
    return candidate._replace(llama_cpp=lambda prompts: llama_cpp.ask(target, prompts))


def require_supported(config: Any, instead: str = _TRY) -> None:
    """Raise InputError for a model that cannot be written as GGUF; `instead` is what to try."""
    kind = config.model_type
    problem = None
    if kind not in ARCHITECTURES:
        problem = f"architecture '{kind}' ({', '.join(ARCHITECTURES)} can be written)"
    elif config.rope_parameters["rope_type"] not in _ROPE_TYPES:
        problem = f"rotary embedding '{config.rope_parameters['rope_type']}' of {kind}"
    elif kind != "qwen2" and getattr(config, "attention_bias", False):
        problem = f"attention biases of {kind}"
    elif getattr(config, "mlp_bias", False):
        problem = f"feed-forward biases of {kind}"
    elif "sliding_attention" in (getattr(config, "layer_types", None) or []):
        problem = f"sliding windows of {kind}"
    if problem is not None:
        raise InputError(f"cannot write a GGUF file with {problem}. {instead}")


def _write_configuration(writer: gguf.GGUFWriter, config: Any, rows: int) -> None:
    head = _head_dim(config)
    writer.add_vocab_size(rows)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def architecture_name(config: Any) -> str:
    """llama.cpp's name of a supported model's architecture."""
    return gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]]


def tensor_name(name: str, config: Any) -> str:
    """llama.cpp's name of a weight. Raises SafeSteerError where it has none."""
    names = _names(config.model_type, config.num_hidden_layers)
    new: str | None = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if new is None:
        raise SafeSteerError(f"llama.cpp has no name for the weights {name}. {_TRY}")
    return new


@cache
def _names(model_type: str, layers: int) -> Any:
    return gguf.get_tensor_name_map(ARCHITECTURES[model_type], layers)


def reordered(name: str, weight: torch.Tensor, config: Any, *, back: bool = False) -> torch.Tensor:
    """A weight of llama.cpp's name with its rows in llama.cpp's order, or `back` in ours.

    In each head of Llama's queries and keys [heads * d, D], two halves become pairs.
    """
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    part = next((part for part in heads if f".{part}." in name), None)
    if config.model_type != "llama" or part is None:
        return weight
    shape = (heads[part], -1, 2, weight.shape[1]) if back else (heads[part], 2, -1, weight.shape[1])
    return weight.reshape(shape).transpose(1, 2).reshape(weight.shape)


def _tensors(model: Any, config: Any) -> dict[str, torch.Tensor]:
    """The weights under llama.cpp's names."""
    found = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        new = tensor_name(name, config)
        found[new] = reordered(new, tensor, config)
    if config.rope_parameters["rope_type"] == "llama3":
        found["rope_freqs.weight"] = _frequency_factors(model, config)
    return found


def _frequency_factors(model: Any, config: Any) -> torch.Tensor:  # [head_dim / 2]
    """The divisors by which llama.cpp scales RoPE frequencies."""
    head = _head_dim(config)
    plain = config.rope_parameters["rope_theta"] ** (-torch.arange(0, head, 2).double() / head)
    return (plain / model.model.rotary_emb.inv_freq.double()).float()


def write_tensors(
    writer: gguf.GGUFWriter, tensors: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    """Write one tensor after the other, so that memory holds no second copy of the model."""
    types = {name: dtype if tensor.dim() > 1 else torch.float32 for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        size = tensor.numel() * types[name].itemsize
        raw = _FILE_TYPES[types[name]][1]
        # With the raw type given, the array's dtype is ignored.
        writer.add_tensor_info(name, tuple(tensor.shape), np.dtype(np.float32), size, raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors.items():
        stored = tensor.detach().to(types[name]).contiguous()
        # numpy has no bfloat16; the bytes are the same.
        plain = stored.view(torch.int16) if stored.dtype is torch.bfloat16 else stored
        writer.write_tensor_data(plain.numpy())


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
