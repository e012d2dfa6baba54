"""A judge's weights: found here or on the hub, checked for their architecture, and loaded.

Weights are read from safetensors only, and code that comes with a model is never run.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from safesteer.errors import InputError
from safesteer.files import read_json

_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def is_local(model: str) -> bool:
    """Whether `model` means a folder here rather than a hub id."""
    return (
        Path(model).expanduser().exists()
        or model.startswith((".", "/", "~"))
        or model.count("/") > 1
    )


def find_weights(judge: str, model: str) -> Path:
    """The folder of a model; a hub model is downloaded into the cache first.

    Raises InputError, one line that says how to get at the weights.
    """
    if is_local(model):
        folder = Path(model).expanduser()
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise InputError(
                f"judge {judge}: {folder} is no model folder: it has no config.json"
                " (nor adapter_config.json)"
            )
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=_FILES))
    except Exception as error:  # gated, unknown, no network: the library has a class for each
        raise InputError(
            f"judge {judge}: cannot get the weights of {model} ({_one_line(error)[:200]}); if they"
            f" are gated, ask for access at https://huggingface.co/{model} and log in with"
            f" `hf auth login`; or give a local folder: {judge}=FOLDER"
        ) from None


def check_architecture(judge: str, folder: Path, wanted: Collection[str]) -> tuple[str, Path]:
    """(architecture, folder of the full weights); an adapter's are those of its base model.

    Raises InputError that names both architectures when it is none of `wanted`.
    """
    full = folder
    if not (folder / "config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        if not base:
            raise InputError(f"judge {judge}: {folder}/adapter_config.json names no base model")
        full = find_weights(judge, base)
    config = read_json(full / "config.json")
    found = (config.get("architectures") or [config.get("model_type", "unknown")])[0]
    if found not in wanted:
        raise InputError(
            f"judge {judge}: {full} holds a {found}, but this judge is a {' or '.join(wanted)};"
            " give its own model, or choose the judge that belongs to this one"
        )
    return found, full


def load_weights(
    judge: str, folder: Path, wanted: Collection[str], device: str
) -> tuple[Any, Any, str]:
    """(model, tokenizer, architecture) of a judge, the adapter of one merged into its base.

    Raises InputError for a wrong architecture and for files that are missing or damaged.
    """
    import transformers

    from safesteer.models.devices import pick_device, pick_dtype

    architecture, full = check_architecture(judge, folder, wanted)
    for part in {folder, full}:
        if not any(part.glob("*.safetensors")):
            raise InputError(
                f"judge {judge}: {part} has no .safetensors weights; others are not loaded"
            )
    where = pick_device(device)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        config = transformers.AutoConfig.from_pretrained(full, trust_remote_code=False)
        _set_chunk_size(config)
        model = getattr(transformers, architecture).from_pretrained(
            full, config=config, dtype=pick_dtype("auto", where), use_safetensors=True
        )
        if full is not folder:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    except Exception as error:  # damaged files fail in as many ways as there are readers
        raise InputError(
            f"judge {judge}: cannot load {folder}: {_one_line(error)[:300]}; a file may be missing"
            " or damaged"
        ) from None
    if not tokenizer.chat_template and (folder / "chat_template.json").is_file():
        # Where older processors keep it; the tokenizer does not look there.
        tokenizer.chat_template = read_json(folder / "chat_template.json").get("chat_template")
    return model.to(where).eval().requires_grad_(False), tokenizer, architecture


def _set_chunk_size(config: Any) -> None:
    """Llama Guard 4's configuration has no chunk size, and transformers then refuses to run it.

    Without chunks every token attends to all earlier ones: one chunk as long as the context
    (github.com/meta-llama/llama-models/issues/383).
    """
    text = config.get_text_config()
    if getattr(text, "attention_chunk_size", 0) is None:
        text.attention_chunk_size = text.max_position_embeddings


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
