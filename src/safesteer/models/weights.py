"""Load weights completely: transformers and peft fill missing tensors with random numbers.

Every model and adapter is loaded here, so that none with a hole in it is trained, judged or
exported.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from safesteer.errors import InputError

_log = logging.getLogger(__name__)


def load_weights(auto_class: Any, path: Any, **arguments: Any) -> Any:
    """``auto_class.from_pretrained(path, **arguments)``, with every tensor from the files.

    Tied output matrices, buffers, and tensors that the architecture knows to ignore may be absent.

    Raises:
        InputError: a tensor is missing, left over, or not finite.
    """
    model, info = auto_class.from_pretrained(path, output_loading_info=True, **arguments)
    where = Path(path) / arguments["gguf_file"] if "gguf_file" in arguments else path
    _require_none(where, "miss", info["missing_keys"], f"that a {type(model).__name__} needs")
    # A block too many is a model cut short; other extra tensors, such as heads for speculative
    # decoding, change nothing.
    extra = set(info["unexpected_keys"])
    blocks = {key for key in extra if re.search(r"\.\d+\.", key)}
    _require_none(where, "hold", blocks, f"that a {type(model).__name__} lacks")
    if extra:
        _log.warning("%s: %d tensors are not used (%s, ...)", where, len(extra), min(extra))
    require_finite(model, where)
    return model


def load_adapter(model: Any, folder: Path, **arguments: Any) -> Any:
    """``PeftModel.from_pretrained(model, folder)``, with every tensor from the file and on a layer.

    Raises:
        InputError: there are no safetensors, or a tensor is missing, belongs to no layer of this
            base, or is not finite.
    """
    from peft import PeftModel
    from peft.utils.save_and_load import get_peft_model_state_dict
    from safetensors import safe_open

    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise InputError(f"{weights} does not exist. Try: save the adapter as safetensors")
    loaded = PeftModel.from_pretrained(model, folder, **arguments)
    with safe_open(weights, "pt") as file:
        stored = set(file.keys())
        for name in sorted(stored):
            _require_finite(name, file.get_tensor(name), folder)
    # Without the embeddings: peft would ask the hub whether they are still those of the base.
    wanted = set(get_peft_model_state_dict(loaded, save_embedding_layers=False))
    _require_none(folder, "miss", wanted - stored, "of the adapter")
    known = wanted | set(loaded.state_dict())  # an adapter may bring embeddings of its own
    _require_none(folder, "hold", stored - known, "for which this base has no layer")
    return loaded


def require_finite(model: Any, where: Any) -> None:
    """Raise InputError that names the first weight with a NaN or an infinity."""
    for name, tensor in model.named_parameters():
        _require_finite(name, tensor, where)


def _require_finite(name: str, tensor: torch.Tensor, where: Any) -> None:
    if not tensor.is_floating_point() or tensor.is_meta or _is_finite(tensor):
        return
    half = "" if tensor.dtype != torch.float16 else " in float16"
    raise InputError(
        f"{where}: the weight {name} holds NaN or infinity{half}. Try:"
        f" {'--dtype bfloat16 (model.dtype), or ' if half else ''}download or save the model again,"
        " in bfloat16 or float32 if it was float16"
    )


def _is_finite(tensor: torch.Tensor) -> bool:
    # A sum is infinite or NaN where an element is, and takes no copy of a large tensor.
    return bool(torch.isfinite(tensor.sum(dtype=torch.float64)))


def _require_none(where: Any, verb: str, keys: Collection[str], what: str) -> None:
    if keys:
        first = ", ".join(sorted(keys)[:2]) + (", ..." if len(keys) > 2 else "")
        raise InputError(
            f"{where}: the weights {verb} {len(keys)} tensors {what} ({first}). Try: download or"
            " save the model again, with the config.json that belongs to it"
        )
