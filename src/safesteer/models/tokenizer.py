"""The tokenizer and chat template of a model, read without its weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from safesteer.config.settings import ModelSettings
from safesteer.errors import InputError, one_line, reason
from safesteer.files import read_object
from safesteer.models.chat import ChatRenderer
from safesteer.models.files import GENERATION_CONFIG, adapter_base, locate, whole_model
from safesteer.models.generate import unused_wishes
from safesteer.models.gguf import load_gguf_tokenizer
from safesteer.models.quiet import quiet_libraries

_log = logging.getLogger(__name__)

_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def load_chat(settings: ModelSettings, now: datetime | None = None) -> ChatRenderer:
    """Read a model's tokenizer and template; log what a person should know about the template.

    Args:
        settings: of the model.
        now: the time that the template reads; the present one if None.

    Raises:
        InputError: the tokenizer is missing or damaged, or the template cannot be used.
    """
    with quiet_libraries():
        tokenizer = _load(settings, settings.trust_remote_code)
    if settings.chat_template is not None:
        tokenizer.chat_template = _read_template(settings.chat_template)
    chat = ChatRenderer(tokenizer, settings.template_kwargs, now=now)
    kind, path, _ = whole_model(settings)
    file = path / GENERATION_CONFIG
    log_notes(chat, settings.id, read_object(file) if kind == "folder" and file.is_file() else {})
    return chat


def log_notes(chat: ChatRenderer, name: str, asked: Mapping[str, Any]) -> None:
    """Log what a person should know of the template, and of a generation config `asked`."""
    notes = list(chat.notes)
    if wishes := unused_wishes(asked):
        notes.append(f"not used of its generation_config.json: {', '.join(wishes)}")
    for note in notes:
        _log.warning("%s: %s", name, note)


def _load(settings: ModelSettings, trust: bool) -> Any:
    kind, path = locate(settings)
    if kind == "gguf":
        keep = settings.advanced.gguf_cache
        return _readable(path, lambda: load_gguf_tokenizer(path, keep=keep))
    base = adapter_base(path)
    if base is not None and not (path / "tokenizer_config.json").is_file():
        return _load(base, trust)
    for name in _FILES:
        if (path / name).is_file():
            read_object(path / name)
    tokenizer = _readable(
        path, lambda: AutoTokenizer.from_pretrained(path, trust_remote_code=trust)
    )
    older = path / "chat_template.json"  # of older vision-language models' processors
    if not tokenizer.chat_template and older.is_file():
        tokenizer.chat_template = read_object(older).get("chat_template")
    return tokenizer


def _readable(where: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # damaged files fail in as many ways as there are readers
        raise InputError(
            f"cannot load the tokenizer in {where}{reason(error)}. Try: download it again"
        ) from None


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the chat template {path}: {one_line(error)}. Try: a Jinja file in UTF-8"
        ) from None
