"""llama.cpp's real server, with and without an adapter. (pytest tests/export)"""

from __future__ import annotations

import json
import urllib.request

import pytest

from safesteer.errors import SafeSteerError
from safesteer.export.formats import export
from safesteer.export.llama_cpp import is_installed
from safesteer.export.llama_server import serving

pytestmark = pytest.mark.skipif(not is_installed(), reason="xllamacpp is not installed")


def get(url):
    with urllib.request.urlopen(url, timeout=20) as reply:
        return json.loads(reply.read())


def test_it_serves_a_file_with_an_adapter_until_closed(make_run, tmp_path):
    run = make_run()
    export(run, "gguf", tmp_path / "model.gguf")
    export(run, "lora-gguf", tmp_path / "lora.gguf")
    with serving(tmp_path / "model.gguf", tmp_path / "lora.gguf") as url:
        (adapter,) = get(f"{url}/lora-adapters")
        assert adapter["scale"] == 1.0 and adapter["path"].endswith("lora.gguf")
    with pytest.raises(OSError):
        get(f"{url}/health")


def test_a_file_that_it_cannot_load(tmp_path):
    (tmp_path / "no.gguf").write_bytes(b"GGUF and nothing else")
    with (
        pytest.raises(SafeSteerError, match=r"cannot load .*no\.gguf"),
        serving(tmp_path / "no.gguf"),
    ):
        pass
