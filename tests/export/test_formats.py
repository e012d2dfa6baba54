"""Exports that cannot be read back or differ are deleted. (pytest tests/export)"""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file

from safesteer.errors import SafeSteerError
from safesteer.export import formats, merged
from safesteer.export.formats import export

EXACT = 1e-4


def test_what_a_tool_cannot_read_is_one_line(make_run, tmp_path, monkeypatch):
    def unreadable(source, target):
        raise KeyError("no such thing")

    form = formats.FORMATS["merged"]._replace(read=unreadable)
    monkeypatch.setitem(formats.FORMATS, "merged", form)
    with pytest.raises(SafeSteerError, match="cannot read the export"):
        export(make_run(), "merged", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_that_differs_is_not_kept(make_run, tmp_path, monkeypatch):
    def spoiled(source, target, dtype):
        merged.write(source, target, dtype)
        weights = load_file(target / "model.safetensors")
        weights["model.layers.3.mlp.down_proj.weight"] *= 1.5
        save_file(weights, target / "model.safetensors", {"format": "pt"})

    form = formats.FORMATS["merged"]._replace(write=spoiled)
    monkeypatch.setitem(formats.FORMATS, "merged", form)
    with pytest.raises(SafeSteerError, match="differs by") as error:
        export(make_run(), "merged", tmp_path / "out")
    assert error.value.exit_code == 1
    assert {path.name for path in tmp_path.iterdir()} == {"base", "run"}
