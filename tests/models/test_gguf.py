"""Dequantized GGUF files are kept, found again, and made again where they were damaged."""

from __future__ import annotations

import logging
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from tiny import make_model, make_tokenizer
from transformers import AutoConfig, AutoTokenizer

from safesteer.config.settings import ModelSettings
from safesteer.memory.shape import read_shape
from safesteer.models import gguf
from safesteer.models.load import load_model


@pytest.fixture
def file(tmp_path, monkeypatch) -> tuple[Path, list[torch.dtype]]:
    """A file that stands for a GGUF file, and the types in which it was dequantized so far."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF and so on")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    made: list[torch.dtype] = []

    def dequantize(path: Path, dtype: torch.dtype):  # type: ignore[no-untyped-def]
        made.append(dtype)
        return make_model(make_tokenizer()).to(dtype)

    read = AutoTokenizer.from_pretrained

    def read_tokenizer(folder: Path, **arguments):  # type: ignore[no-untyped-def]
        return make_tokenizer() if "gguf_file" in arguments else read(folder, **arguments)

    monkeypatch.setattr(gguf, "_dequantize", dequantize)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", read_tokenizer)
    return path, made


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "home" / "safesteer" / "models").glob("*float*"))


def test_the_second_start_reads_the_same_model_from_the_cache(file, tmp_path):
    path, made = file
    settings = ModelSettings(id=str(path), dtype="float32", device="cpu")
    first, second = load_model(settings), load_model(settings)
    assert made == [torch.float32]
    weights = second.model.state_dict()
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, weights[name])
    assert (first.sha256, first.id) == (second.sha256, second.id)
    assert second.model.config._name_or_path == str(path.parent)
    asked = [{"role": "user", "content": "Name a color. 🙂"}]
    assert first.chat.ids(asked) == second.chat.ids(asked)


def test_another_type_and_another_file_are_kept_apart(file, tmp_path):
    path, made = file
    for dtype in (torch.float32, torch.bfloat16, torch.bfloat16):
        gguf.load_gguf(path, dtype, keep=True)
    path.write_bytes(b"GGUF and so forth")
    model = gguf.load_gguf(path, torch.bfloat16, keep=True)
    assert made == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert model.dtype == torch.bfloat16 and len(kept(tmp_path)) == 3


@pytest.mark.parametrize("damage", ["bit", "gone"])
def test_a_damaged_entry_is_said_and_made_again(file, tmp_path, caplog, damage):
    path, made = file
    first = gguf.load_gguf(path, torch.float32, keep=True)
    (folder,) = kept(tmp_path)
    weights = folder / "model.safetensors"
    if damage == "bit":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    else:
        weights.unlink()
    again = gguf.load_gguf(path, torch.float32, keep=True)
    assert torch.equal(first.lm_head.weight, again.lm_head.weight) and len(made) == 2
    assert "was damaged or changed; it is made again" in caplog.text
    gguf.load_gguf(path, torch.float32, keep=True)
    assert len(made) == 2


def test_turned_off_it_keeps_nothing(file, tmp_path):
    path, made = file
    settings = ModelSettings(id=str(path), dtype="float32", advanced={"gguf_cache": False})
    for _ in range(2):
        load_model(settings)
    assert len(made) == 2 and not kept(tmp_path)


def test_without_room_the_model_loads_all_the_same(file, tmp_path, monkeypatch, caplog):
    path, made = file
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 90, 10))
    with caplog.at_level(logging.WARNING):
        gguf.load_gguf(path, torch.float32, keep=True)
    assert "cannot be kept" in caplog.text and "almost full" in caplog.text
    assert len(made) == 1 and not kept(tmp_path)


def test_the_shape_is_read_from_the_file_once(file, monkeypatch):
    path, made = file
    read, converted = AutoConfig.from_pretrained, []

    def read_config(folder: Path, **arguments):  # type: ignore[no-untyped-def]
        if "gguf_file" not in arguments:
            return read(folder, **arguments)
        converted.append(folder)
        return make_model(make_tokenizer()).config

    monkeypatch.setattr(AutoConfig, "from_pretrained", read_config)
    settings = ModelSettings(id=str(path))
    assert read_shape(settings) == read_shape(settings)
    assert len(converted) == 1 and not made
    read_shape(ModelSettings(id=str(path), advanced={"gguf_cache": False}))
    assert len(converted) == 2
