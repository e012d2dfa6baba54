"""A chat model in memory, from the files that `safesteer.models.files` finds.

A vision-language model is loaded whole; what is said to it is text.

Everything that can be wrong with a model's files is found here and said in one line. Weights are
read from safetensors or GGUF only, never from pickles; code that comes with a model is not run
unless asked.
"""

from __future__ import annotations

import json
import logging
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

from safesteer.config.settings import ModelSettings
from safesteer.errors import InputError, one_line
from safesteer.models.chat import ChatRenderer
from safesteer.models.devices import check_device_map, pick_device, pick_dtype
from safesteer.models.files import adapter_base, fingerprint, locate
from safesteer.models.layers import find_blocks, text_config
from safesteer.models.quantization import (
    BITSANDBYTES,
    check_device,
    check_quantization,
    dequantize_on_load,
    is_quantized,
    loaded_bits,
    loading_arguments,
    match_training,
    quantization_of,
)

_PROCESSOR = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)


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
    def without_thinking(self) -> ChatModel:
        """The same model with prompts that end where the answer begins, also if it thinks first."""
        return replace(self, chat=self.chat.without_thinking)

    @property
    def identity(self) -> dict[str, str | None]:
        """What a run directory records to recognise the model."""
        return {"id": self.id, "revision": self.revision, "sha256": self.sha256}


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
    device_map = settings.advanced.device_map
    if kind == "gguf" and device_map is not None:
        raise InputError(
            f"model.advanced.device_map = '{device_map}': a GGUF file is loaded whole; convert it"
            " to a folder of safetensors, or leave it out"
        )
    dtype = torch.float32 if for_full_training else pick_dtype(settings.dtype, device)
    with quiet_libraries():
        try:
            model, tokenizer = _load(kind, path, dtype, settings, device)
        except InputError:
            raise
        except ImportError as error:
            raise InputError(f"{settings.id}: {one_line(error)}") from None
        except Exception as error:  # damaged files fail in as many ways as there are readers
            raise InputError(
                f"cannot load the model {settings.id} from {path}: {one_line(error)};"
                " the file may be truncated or damaged"
            ) from None
    if settings.chat_template is not None:
        try:
            tokenizer.chat_template = Path(settings.chat_template).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"cannot read the chat template {settings.chat_template}: {one_line(error)}"
            ) from None
    chat = ChatRenderer(tokenizer, settings.template_kwargs)
    find_blocks(model)
    head = model.get_output_embeddings().weight
    if is_quantized(head):
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
    if device_map is None:
        torch.nn.Module.to(model, device)
    if quantization_of(model) is not None:
        match_training(model)
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
        raise InputError(f"{path}: cannot load the tokenizer: {one_line(error)}") from None


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
    bits = loaded_bits(settings, "folder", path)
    place: Any = settings.advanced.device_map
    if bits in BITSANDBYTES:
        check_device(device, bits)
        place = place or {"": device}  # rounded where it stays
    dequantize_on_load(config)
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
