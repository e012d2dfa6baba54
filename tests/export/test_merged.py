"""Merged weights load with transformers alone. (pytest tests/export)"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, GenerationConfig

from safesteer.export import merged
from safesteer.export.formats import export
from safesteer.export.output import RECORD

EXACT = 1e-4


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_merged_weights_load_with_transformers_alone(make_run, tmp_path, method, dtype):
    made = export(make_run(method=method), "merged", tmp_path / "out", dtype=dtype)
    assert made.difference <= (EXACT if dtype == "float32" else made.bound)
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == getattr(torch, dtype)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "generation_config.json", "chat_template.jinja", RECORD} <= names
    assert not any(path.name.startswith("adapter") for path in (tmp_path / "out").iterdir())
    # Nothing else is left beside it.
    assert {path.name for path in tmp_path.iterdir()} == {"base", "run", "out"}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_generation_config_of_the_base_is_kept(make_run, new_chat_model, tmp_path, method):
    """Byte for byte, although nothing of it decides what safesteer generates."""
    model = new_chat_model().model
    wishes = {"suppress_tokens": [7], "min_new_tokens": 3, "do_sample": True, "temperature": 0.6}
    model.generation_config = GenerationConfig(eos_token_id=[2, 5], **wishes)
    run = make_run(model, method=method)
    export(run, "merged", tmp_path / "out")
    file = tmp_path / "base" / "generation_config.json"
    assert "suppress_tokens" in file.read_text()
    assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_large_weights_are_sharded(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(merged, "SHARD", "50KB")
    made = export(make_run(), "merged", tmp_path / "out")
    assert made.difference <= EXACT
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
