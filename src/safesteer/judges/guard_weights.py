"""Weights of guard models: located, checked for their architecture, and loaded.

Weights are read from safetensors alone, and code that comes with a model is never run.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from safesteer.errors import InputError, reason
from safesteer.files import read_object
from safesteer.models.files import is_local
from safesteer.models.weights import load_adapter, require_finite
from safesteer.models.weights import load_weights as load_complete

_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def find_weights(judge: str, model: str) -> Path:
    """The folder of a judge's model; a hub model is downloaded into the cache first."""
    if is_local(model):
        folder = Path(model).expanduser()
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise InputError(
                f"judge {judge}: {folder} is not a model folder: it has no config.json or"
                f" adapter_config.json. Try: {judge}=FOLDER with one of them"
            )
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=_FILES))
    except Exception as error:  # gated, unknown, no network: the library has a class for each
        raise InputError(
            f"judge {judge}: cannot download {model}{reason(error)}. Try: request"
            f" access at https://huggingface.co/{model} if it is gated, and run `hf auth login`, or"
            f" a local folder: {judge}=FOLDER"
        ) from None


def check_architecture(judge: str, folder: Path, wanted: Collection[str]) -> tuple[str, Path]:
    """Check that a judge's folder holds one of the `wanted` architectures.

    Returns:
        (architecture, folder of the full weights), for an adapter those of its base model.
    """
    full = folder
    if not (folder / "config.json").is_file():
        base = read_object(folder / "adapter_config.json").get("base_model_name_or_path")
        if not base:
            raise InputError(
                f"judge {judge}: {folder}/adapter_config.json names no base model. Try: set"
                " base_model_name_or_path there"
            )
        full = find_weights(judge, base)
    config = read_object(full / "config.json")
    found = (config.get("architectures") or [config.get("model_type", "unknown")])[0]
    if found not in wanted:
        raise InputError(
            f"judge {judge}: {full} holds a {found}, but this judge is a {' or '.join(wanted)}."
            " Try: its own model, or the judge that belongs to this one"
        )
    return found, full


def load_weights(
    judge: str, folder: Path, wanted: Collection[str], device: str
) -> tuple[Any, Any, str]:
    """Load a judge's (model, tokenizer, architecture), merging an adapter into its base."""
    import transformers

    from safesteer.models.devices import pick_device, pick_dtype

    architecture, full = check_architecture(judge, folder, wanted)
    for part in {folder, full}:
        if not any(part.glob("*.safetensors")):
            raise InputError(
                f"judge {judge}: {part} has no .safetensors weights, and pickles are not loaded."
                " Try: save it as safetensors"
            )
    where = pick_device(device)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        config = transformers.AutoConfig.from_pretrained(full, trust_remote_code=False)
        _set_chunk_size(config)
        model = load_complete(
            getattr(transformers, architecture),
            full,
            config=config,
            dtype=pick_dtype("auto", where),
            use_safetensors=True,
        )
        if full is not folder:
            model = load_adapter(model, folder).merge_and_unload()
            require_finite(model, folder)
    except InputError as error:
        raise InputError(f"judge {judge}: {error}") from None
    except Exception as error:  # damaged files fail in as many ways as there are readers
        raise InputError(
            f"judge {judge}: cannot load {folder}{reason(error)}. A file may be"
            " missing or damaged. Try: download it again"
        ) from None
    if not tokenizer.chat_template and (folder / "chat_template.json").is_file():
        # Older processors keep it there, and the tokenizer does not read it.
        tokenizer.chat_template = read_object(folder / "chat_template.json").get("chat_template")
    return model.to(where).eval().requires_grad_(False), tokenizer, architecture


def _set_chunk_size(config: Any) -> None:
    """Set the chunk size that Llama Guard 4's configuration lacks and transformers requires.

    It attends without chunks: one chunk as long as the context
    (github.com/meta-llama/llama-models/issues/383).
    """
    text = config.get_text_config()
    if getattr(text, "attention_chunk_size", 0) is None:
        text.attention_chunk_size = text.max_position_embeddings
