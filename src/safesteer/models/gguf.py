"""GGUF files as models of transformers, converted once and kept in the user's cache."""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from safesteer.errors import InputError, one_line
from safesteer.files import PARTIAL, sha256_file, write_json
from safesteer.models.answer_cache import user_cache
from safesteer.models.weights import load_weights

_log = logging.getLogger(__name__)

_HASHES = "hashes.json"  # written last: {file: sha256}
_RESERVE = 2**30  # bytes of the disk that stay free


def load_gguf(path: Path, dtype: torch.dtype, *, keep: bool) -> PreTrainedModel:
    """Load the weights of a GGUF file, from the cache if they were loaded before.

    Args:
        path: the file.
        dtype: type of the dequantized weights.
        keep: whether to read from the cache, and to write into it. It may be deleted at any time.

    Raises:
        InputError: a tensor is missing, left over, or not finite.
    """

    if not keep:
        return _dequantize(path, dtype)

    def read(folder: Path) -> PreTrainedModel:
        model = load_weights(AutoModelForCausalLM, folder, dtype=dtype, use_safetensors=True)
        model.config._name_or_path = str(path.parent)  # as if it came from the file
        return model

    return _kept(path, str(dtype).removeprefix("torch."), lambda: _dequantize(path, dtype), read)


def load_gguf_tokenizer(path: Path, *, keep: bool) -> Any:
    """Load the tokenizer of a GGUF file; see `load_gguf`."""

    def convert() -> Any:
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)

    return _kept(path, "tokenizer", convert, AutoTokenizer.from_pretrained) if keep else convert()


def load_gguf_config(path: Path, *, keep: bool) -> Any:
    """Load the configuration in a GGUF file; see `load_gguf`.

    transformers reads the whole vocabulary for it, which takes seconds.
    """

    def convert() -> Any:
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)

    return _kept(path, "config", convert, AutoConfig.from_pretrained) if keep else convert()


def _dequantize(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    model = load_weights(AutoModelForCausalLM, path.parent, dtype=dtype, gguf_file=path.name)
    # A model with a GGUF origin cannot be saved: put its tensors into one made from the plain
    # configuration.
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=dtype)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def _kept(path: Path, kind: str, make: Callable[[], Any], read: Callable[[Path], Any]) -> Any:
    """What `make` made of a file: read from the cache, or made and written into it."""
    name = f"{sha256_file(path)[:32]}-{kind}-{transformers.__version__}"
    folder = user_cache("models") / name
    if _is_whole(folder):
        return read(folder)
    made = make()
    _keep(made, folder, path)
    return made


def _is_whole(folder: Path) -> bool:
    """Whether a folder's files are there as they were written; what is damaged is deleted."""
    if not folder.is_dir():
        return False
    with suppress(InputError, OSError, ValueError, AttributeError):
        hashes = json.loads((folder / _HASHES).read_text("utf-8"))
        if hashes and all(sha256_file(folder / name) == known for name, known in hashes.items()):
            return True
    _log.warning("%s was damaged or changed; it is made again", folder)
    shutil.rmtree(folder, ignore_errors=True)
    return False


def _keep(made: Any, folder: Path, path: Path) -> None:
    """Write into the cache if the disk has room; what is in memory serves either way."""
    partial = folder.with_name(folder.name + uuid.uuid4().hex[:8] + PARTIAL)
    try:
        partial.mkdir(parents=True)
        size = made.get_memory_footprint() if isinstance(made, PreTrainedModel) else 0
        if shutil.disk_usage(partial).free < size + _RESERVE:
            raise OSError("the disk is almost full")
        made.save_pretrained(partial)
        hashes = {file.name: sha256_file(file) for file in partial.iterdir()}
        write_json(partial / _HASHES, hashes)
        os.replace(partial, folder)
    except Exception as error:
        if not (folder / _HASHES).is_file():  # another process may have been faster
            where = folder.parent
            _log.warning("%s cannot be kept in %s: %s", path, where, one_line(error))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
