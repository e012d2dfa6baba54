"""Chat models in memory, loaded from files or wrapped around a model that is loaded already.

Anything wrong with a model's files is reported here in one line. Weights are read from safetensors
or GGUF, never from pickles; code that comes with a model runs only if the settings allow it. A
vision-language model is loaded whole and used with text.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
)

from safesteer.config.settings import ModelSettings
from safesteer.errors import InputError, one_line, reason
from safesteer.files import read_object
from safesteer.models.base_weights import adapter_layers
from safesteer.models.chat import ChatRenderer
from safesteer.models.devices import check_device_map, pick_device, pick_dtype
from safesteer.models.files import GENERATION_CONFIG, adapter_base, fingerprint, locate
from safesteer.models.generate import IDS
from safesteer.models.gguf import load_gguf
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
from safesteer.models.quiet import quiet_libraries
from safesteer.models.tokenizer import load_chat, log_notes
from safesteer.models.weights import load_adapter, load_weights, require_finite

_PROCESSOR = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)


@dataclass
class ChatModel:
    """A model in memory with the renderer of its chats, as every stage needs it.

    Attributes:
        model: the causal language model, in evaluation mode, its weights frozen.
        chat: renders messages for it; ``chat.tokenizer`` is its tokenizer.
        id: hub id, folder or file, as the user gave it.
        revision: commit of a hub model, if known.
        sha256: hash of the weights' files (see `fingerprint`), if there are any.
    """

    model: PreTrainedModel
    chat: ChatRenderer
    id: str = "in-memory"
    revision: str | None = None
    sha256: str = ""

    @classmethod
    def wrap(
        cls, model: Any, tokenizer: Any, template_kwargs: dict[str, Any] | None = None
    ) -> ChatModel:
        """Use a model that is in memory already.

            model = AutoModelForCausalLM.from_pretrained(...)
            chat_model = ChatModel.wrap(model, AutoTokenizer.from_pretrained(...))
            found = safesteer.extract_direction(chat_model, ...)

        The model stays on its device; it is put into evaluation mode and its weights are frozen.

        Args:
            model: a causal language model of transformers, without adapters.
            tokenizer: its tokenizer, with a chat template.
            template_kwargs: arguments of the template, see `ChatRenderer`.

        Raises:
            InputError: the model has adapters, no blocks, or a weight that is not finite, the
                tokenizer has no chat template, or the two do not belong together.
        """
        if adapter_layers(model):
            raise InputError(
                f"{type(model).__name__} has adapters, and the base must have none. Try:"
                " model.merge_and_unload()"
            )
        require_finite(model, type(model).__name__)
        chat = ChatRenderer(tokenizer, template_kwargs)
        name = type(model).__name__
        asked = model.generation_config.to_diff_dict() if model.generation_config else {}
        log_notes(chat, name, asked)
        return cls(_ready(model, chat, name), chat)

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
        """The same model, whose prompts end with an empty thinking block if it thinks."""
        return replace(self, chat=self.chat.without_thinking)

    @property
    def identity(self) -> dict[str, str | None]:
        """The model's record in a run directory."""
        return {"id": self.id, "revision": self.revision, "sha256": self.sha256}


def load_model(
    settings: ModelSettings | str,
    *,
    for_full_training: bool = False,
    chat: ChatRenderer | None = None,
) -> ChatModel:
    """Load a chat model.

    Args:
        settings: what to load and how, or just its id.
        for_full_training: keep float32 master weights, whatever dtype the settings name.
        chat: its renderer, if `load_chat` has made it already.

    Raises:
        InputError: the model is missing, truncated, pickled or not a chat model, or its dtype,
            device or quantization is not available on this machine.
    """
    if isinstance(settings, str):
        settings = ModelSettings(id=settings)
    check_device_map(settings)
    kind, path = locate(settings)
    check_quantization(settings, kind, path, full=for_full_training)
    device_map = settings.advanced.device_map
    if kind == "gguf" and device_map is not None:
        raise InputError(
            f"model.advanced.device_map = '{device_map}' cannot spread the GGUF file {settings.id}."
            " Try: a folder of safetensors, or no device_map"
        )
    identity = fingerprint(settings)
    device = pick_device(settings.device)
    dtype = torch.float32 if for_full_training else pick_dtype(settings.dtype, device)
    chat = chat or load_chat(settings)
    with quiet_libraries():
        model = _load_or_explain(kind, path, dtype, settings, device)
    if device_map is None:
        torch.nn.Module.to(model, device)
    return ChatModel(
        model=_ready(model, chat, settings.id),
        chat=chat,
        id=settings.id,
        revision=identity["revision"],
        sha256=identity["sha256"] or "",
    )


def _load_or_explain(
    kind: str, path: Path, dtype: torch.dtype, settings: ModelSettings, device: torch.device
) -> PreTrainedModel:
    try:
        return _load(kind, path, dtype, settings, device)
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"{settings.id}: {one_line(error)}") from None
    except Exception as error:  # damaged files fail in as many ways as there are readers
        raise InputError(
            f"cannot load the model {settings.id} from {path}{reason(error)}. A file may be"
            " truncated or damaged. Try: download it again"
        ) from None


def _load(
    kind: str, path: Path, dtype: torch.dtype, settings: ModelSettings, device: torch.device
) -> PreTrainedModel:
    """The model; an adapter is merged into its base, which may be an adapter too."""
    if kind == "gguf":
        return load_gguf(path, dtype, keep=settings.advanced.gguf_cache)
    base = adapter_base(path)
    if base is None:
        return _load_folder(path, dtype, settings, device)
    kind, below = locate(base)
    if check_quantization(base, kind, below, full=False) != "none":
        raise InputError(
            f"{path} holds an adapter of {base.id}, whose quantized weights would lose a part of it"
            " in merging. Try: merge it into the original weights, and use that folder"
        )
    return merge_adapter(_load(kind, below, dtype, settings, device), path)


def _load_folder(
    path: Path, dtype: torch.dtype, settings: ModelSettings, device: torch.device
) -> PreTrainedModel:
    trust = settings.trust_remote_code
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{path} holds an encoder-decoder ({type(config).__name__}). Try: a decoder model"
        )
    if not any(path.glob("*.safetensors")):
        pickled = "; pickled weights (.bin) are not loaded" if any(path.glob("*.bin")) else ""
        raise InputError(
            f"{path} has no .safetensors weights{pickled}. Try: save it as safetensors"
        )
    bits = loaded_bits(settings, "folder", path)
    place: Any = settings.advanced.device_map
    if bits in BITSANDBYTES:
        check_device(device, bits)
        place = place or {"": device}  # quantized weights cannot move
    dequantize_on_load(config)
    model = load_weights(
        _auto_class_of(config),
        path,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=trust,
        device_map=place,
        **_generation_config(path),
        **loading_arguments(settings.quantization, dtype),
    )
    _check_placement(path, model)
    return model


def _generation_config(path: Path) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` with the ids in generation_config.json, and no wishes."""
    if not (path / GENERATION_CONFIG).is_file():
        return {}
    asked = read_object(path / GENERATION_CONFIG)
    ids = {key: asked[key] for key in IDS if key in asked}
    return {"generation_config": GenerationConfig(**ids)}


def _check_placement(path: Path, model: PreTrainedModel) -> None:
    """Raise InputError if a device map left part of a model off the GPUs."""
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    # The output matrix is read outside of its module's forward, which would fetch it.
    if len(places) > 1 and places & {"cpu", "disk"}:
        raise InputError(
            f"{path} does not fit on the GPUs: parts were placed on"
            f" {' and '.join(sorted(places & {'cpu', 'disk'}))}. Try: more or larger GPUs, or a"
            " smaller model.dtype"
        )


def merge_adapter(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """Merge the adapter in a folder into the model's weights.

    Raises:
        InputError: this kind of adapter cannot be merged.
    """
    loaded = load_adapter(model, adapter)
    if not hasattr(loaded, "merge_and_unload"):
        kind = loaded.active_peft_config.peft_type.value
        raise InputError(
            f"{adapter} is a {kind} adapter, which cannot be merged into weights. Try: a LoRA"
        )
    merged = loaded.merge_and_unload()
    require_finite(merged, adapter)  # a sum may overflow where its parts do not
    return merged


def _ready(model: Any, chat: ChatRenderer, name: str) -> Any:
    """Check that model and tokenizer fit, and freeze the model; returns it."""
    find_blocks(model)
    head = model.get_output_embeddings().weight
    if is_quantized(head):
        raise InputError(
            f"the output matrix of {name} is quantized, and log-probabilities need the original."
            " Try: quantize the model without its output matrix, or use --quantization"
        )
    try:
        chat.require_rows(head.shape[0])
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    model.config.pad_token_id = chat.tokenizer.pad_token_id
    if model.generation_config is not None:
        model.generation_config.pad_token_id = chat.tokenizer.pad_token_id
    if quantization_of(model) is not None:
        match_training(model)
    return model.eval().requires_grad_(False)


def auto_class(folder: Path, trust: bool = False) -> Any:
    """The class of transformers that loads the model in a folder, with any vision tower."""
    return _auto_class_of(AutoConfig.from_pretrained(folder, trust_remote_code=trust))


def _auto_class_of(config: Any) -> Any:
    # AutoModelForCausalLM would load the text tower alone of some vision-language models.
    vision = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if vision else AutoModelForCausalLM


def save_model(
    model: PreTrainedModel,
    tokenizer: Any,
    folder: str | Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Save weights (safetensors), configuration and tokenizer for transformers.

    `weights` are saved in place of the model's own, under the same names.
    """
    with quiet_libraries():
        model.save_pretrained(folder, safe_serialization=True, state_dict=weights)
        tokenizer.save_pretrained(folder)


def copy_base_files(base: Path, folder: Path) -> None:
    """Copy the base's generation_config.json, byte for byte, and an image processor's files."""
    for name in (GENERATION_CONFIG, *_PROCESSOR):
        if (base / name).is_file() and (name == GENERATION_CONFIG or not (folder / name).exists()):
            shutil.copyfile(base / name, folder / name)


def describe(model: ChatModel) -> dict[str, Any]:
    """Facts about a loaded model for `safesteer doctor`."""
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
