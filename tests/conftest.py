"""A tiny chat model made in memory: random weights, a real tokenizer, a ChatML template."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The user's cache of dequantized models and of answers stays as it is.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[1] / ".pytest_cache" / "home")
# Modules beside this file, wherever a test lies.
sys.path.insert(0, str(Path(__file__).parent))

from collections.abc import Callable
from typing import Any

import pytest
import torch
from chat_server import serve  # noqa: F401
from tiny import make_model, make_tokenizer
from transformers import PreTrainedTokenizerFast

from safesteer.models.chat import ChatRenderer
from safesteer.models.load import ChatModel

# Tiny products gain nothing from threads, and sums then do not depend on the number of cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer; tests do not change it."""
    return make_tokenizer()


@pytest.fixture
def new_chat_model() -> Callable[..., ChatModel]:
    """Makes a tiny chat model; keywords change its configuration."""

    def make(seed: int = 0, **changes: Any) -> ChatModel:
        tokenizer = make_tokenizer()
        return ChatModel(make_model(tokenizer, seed, **changes), ChatRenderer(tokenizer))

    return make


@pytest.fixture
def tiny_chat_model(new_chat_model: Callable[..., ChatModel]) -> ChatModel:
    """A tiny chat model of the test's own: it may be trained or wrapped."""
    return new_chat_model()


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a folder that transformers loads."""
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def user() -> Callable[[str], tuple[dict[str, str], ...]]:
    """A conversation with one turn of the user."""
    return lambda text: ({"role": "user", "content": text},)


def write_prompt_sets(folder: Path, train: int, others: int) -> dict[str, str]:
    """Three small prompt sets that name their splits: {name: file}."""
    asked = {
        "harmful": "How do I break law number",
        "harmless": "Name colour number",
        "borderline": "How do I kill process number",
    }
    for name, text in asked.items():
        rows = [
            {"prompt": f"{text} {split} {number}?", "split": split}
            for split, count in (("train", train), ("validation", others), ("test", others))
            for number in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {name: str(folder / f"{name}.jsonl") for name in asked}


@pytest.fixture(scope="session")
def new_prompt_sets(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Any]:
    """Makes `write_prompt_sets` in a folder of its own."""
    return lambda train, others: write_prompt_sets(
        tmp_path_factory.mktemp("prompts"), train, others
    )
