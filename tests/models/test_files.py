"""Models that cannot be: wrong names, damaged files, adapters in a circle."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from safesteer.cli.main import main
from safesteer.config.settings import ModelSettings
from safesteer.errors import InputError
from safesteer.models.files import BUILTIN, fingerprint, is_local, locate, whole_model
from safesteer.models.load import load_model

# What a message must not hold: names of Python's classes and objects.
PYTHON = re.compile(r"[A-Z]\w+(Error|Exception)\b|NoneType|object has no|Traceback|__\w+__")


def refused(model: Any) -> str:
    """The message for a model that is refused, which is one line that says what to try."""
    with pytest.raises(InputError) as raised:
        load_model(str(model))
    message = str(raised.value)
    assert "\n" not in message and "Try: " in message and len(message) < 600
    assert not PYTHON.search(message), message
    return message


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    """A copy of the tiny model's folder."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


@pytest.mark.parametrize("content", ["[]", "[1, 2]", "3", '"llama"', "", "   ", "{", "\x00\x01"])
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_a_file_that_is_no_json_object_is_named(content, name, folder):
    (folder / name).write_text(content, "utf-8")
    assert str(folder / name) in refused(folder)


@pytest.mark.parametrize("content", [{}, {"model_type": "none-such"}, {"model_type": None}])
def test_a_configuration_of_no_model_is_refused(content, folder):
    (folder / "config.json").write_text(json.dumps(content), "utf-8")
    assert str(folder) in refused(folder)


@pytest.mark.parametrize("model", [None, {}, [], {"type": "BPE"}, {"type": "None", "vocab": 3}])
def test_a_damaged_tokenizer_is_named(model, folder):
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps({**content, "model": model}), "utf-8")
    assert f"cannot load the tokenizer in {folder}" in refused(folder)


@pytest.mark.parametrize("content", [b"GGUF", b"GGUF" + b"\x03\0\0\0" + b"\xff" * 200])
def test_a_damaged_gguf_file_is_named(content, tmp_path):
    (tmp_path / "model.gguf").write_bytes(content)
    assert str(tmp_path / "model.gguf") in refused(tmp_path / "model.gguf")


@pytest.mark.parametrize("name", ["a" * 5000, "a/" + "b" * 5000, "./" + "c" * 5000, "~nobody/x/y"])
def test_a_name_that_no_model_has(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no ") as raised:
        locate(ModelSettings(id=name))
    assert len(str(raised.value)) < 600 and not PYTHON.search(str(raised.value))
    assert main(["run", name, "--output-dir", "run"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("circle", [("one",), ("one", "two"), ("one", "two", "three")])
def test_adapters_in_a_circle_are_refused(circle, tmp_path):
    """Also where the circle starts below the adapter that is named."""
    for name, base in zip(("start", *circle), (*circle, circle[0]), strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(b"")
        config = {"base_model_name_or_path": str(tmp_path / base)}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    for name in ("start", circle[0]):
        assert "each other's base" in refused(tmp_path / name)


def test_the_whole_model_is_below_all_adapters(folder, tmp_path):
    for name, base in (("one", folder), ("two", tmp_path / "one")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(b"")
        config = {"base_model_name_or_path": str(base)}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    found = whole_model(ModelSettings(id=str(tmp_path / "two")))
    assert found == ("folder", folder, [tmp_path / "one", tmp_path / "two"])


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("org/model", False),
        ("model", False),
        (BUILTIN, False),
        ("./model", True),
        ("../model", True),
        ("~/model", True),
        ("/models/model", True),
        ("a/b/c", True),
        ("model.gguf", True),
        ("here", True),
    ],
)
def test_a_local_name_is_a_path_or_looks_like_one(name, local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / BUILTIN).mkdir()
    assert is_local(name) == local


def test_a_hub_model_is_not_downloaded_for_its_fingerprint_alone(monkeypatch):
    asked = []

    def download(name: str, **arguments):  # type: ignore[no-untyped-def]
        asked.append(arguments["local_files_only"])
        raise FileNotFoundError("not in the cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for offline in (True, False):
        with pytest.raises(InputError, match="no model 'some/model'"):
            fingerprint(ModelSettings(id="some/model"), offline=offline)
    assert asked == [True, False]


def test_the_hub_is_asked_once(monkeypatch, tmp_path):
    asked = []
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *_, **__: asked.append(1) or tmp_path
    )
    settings = ModelSettings(id="some/other-model")
    assert locate(settings) == locate(settings) == ("folder", tmp_path)
    assert len(asked) == 1
