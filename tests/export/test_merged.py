"""Merged weights load with transformers alone. (pytest tests/export)"""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
)

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


def test_large_weights_are_sharded(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(merged, "SHARD", "50KB")
    made = export(make_run(), "merged", tmp_path / "out")
    assert made.difference <= EXACT
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
