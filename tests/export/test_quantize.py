"""`llama-quantize`: its types, and where it is looked for. (pytest tests/export)"""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from safesteer.errors import InputError, SafeSteerError
from safesteer.export import quantize
from safesteer.export.formats import export


def test_types_are_read_from_a_list():
    assert quantize.read_types(" q8_0,Q4_K_M, Q8_0,") == ["Q8_0", "Q4_K_M"]
    assert quantize.read_types("") == []
    with pytest.raises(InputError, match="did you mean 'Q4_K_M'"):
        quantize.read_types("Q4_KM")
    assert quantize.quantized_path(Path("a/m.gguf"), "Q8_0") == Path("a/m-Q8_0.gguf")


def test_without_the_tools(monkeypatch):
    monkeypatch.setattr(quantize, "_tool", lambda: None)
    monkeypatch.setattr(quantize, "is_installed", lambda: False)
    with pytest.raises(InputError, match="needs llama-quantize and xllamacpp") as error:
        quantize.require_tools()
    assert "pip install 'safesteer[llama]'" in str(error.value)


def test_a_tool_on_the_path_is_asked_and_its_failure_is_one_line(tmp_path, monkeypatch):
    tool = tmp_path / "llama-quantize"
    tool.write_text(
        '#!/bin/sh\necho "$3" > "$2"\n[ "$3" = Q8_0 ] || { echo no room >&2; exit 3; }\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    quantize.quantize(tmp_path / "m.gguf", tmp_path / "q.gguf", "Q8_0")
    assert (tmp_path / "q.gguf").read_text() == "Q8_0\n"
    with pytest.raises(SafeSteerError, match=r"cannot write Q4_0 \(no room\)"):
        quantize.quantize(tmp_path / "m.gguf", tmp_path / "q.gguf", "Q4_0")


@pytest.mark.skipif(quantize._tool() is None, reason="llama-quantize is not installed")
def test_the_real_tool(make_run, tmp_path):
    export(make_run(), "gguf", tmp_path / "m.gguf")
    quantize.quantize(tmp_path / "m.gguf", tmp_path / "q.gguf", "Q8_0")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "q.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q8_0"
