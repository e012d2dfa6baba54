"""A GGUF file is the run's model, or is refused in one line. (pytest tests/export)"""

from __future__ import annotations

import gguf
import pytest

from safesteer.config.settings import ModelSettings
from safesteer.errors import InputError
from safesteer.export import gguf_file
from safesteer.export.formats import export
from safesteer.files import read_json, write_json
from safesteer.models.files import fingerprint

EXACT = 1e-4


@pytest.mark.parametrize("name", ["llama", "llama-tied-padded", "llama3-rope", "qwen2", "qwen3"])
def test_a_gguf_file_is_the_model(make_run, tmp_path, build, name, tokenizer):
    made = export(make_run(build(name)), "gguf", tmp_path / "out.gguf", dtype="float32")
    assert made.difference <= EXACT
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    # transformers gives the split of Qwen 2 to whatever tokenizer lies beside such a model.
    split = "qwen2" if name == "qwen2" else "gpt-2"
    assert fields["tokenizer.ggml.pre"].contents() == split
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gguf_types(make_run, tmp_path, dtype):
    made = export(make_run(), "gguf", tmp_path / "out.gguf", dtype=dtype)
    assert 0 < made.difference <= made.bound
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == {"float16": "F16", "bfloat16": "BF16"}[dtype]
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_llama3_frequencies_are_those_of_transformers(make_run, tmp_path, build):
    """llama.cpp divides the plain frequencies by these: the slow ones by the whole factor."""
    export(make_run(build("llama3-rope")), "gguf", tmp_path / "out.gguf")
    tensors = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    factors = tensors["rope_freqs.weight"]
    assert factors.shape == (8,) and factors[0] == 1 and abs(factors[-1] - 8) < 1e-5


def test_a_run_of_a_gguf_file_gives_a_gguf_file(make_run, tmp_path):
    """The base read from GGUF: its own name for the split before BPE is kept."""
    run = make_run()
    file = tmp_path / "base.gguf"
    export(run, "gguf", file, dtype="float32")
    settings = (run / "config.yaml").read_text("utf-8")
    (run / "config.yaml").write_text(settings.replace(str(tmp_path / "base"), str(file)), "utf-8")
    manifest = read_json(run / "manifest.json")
    manifest["model"] |= fingerprint(ModelSettings(id=str(file)))
    write_json(run / "manifest.json", manifest)
    for name in ("adapter", "merged", "gguf"):
        output = tmp_path / ("out.gguf" if name == "gguf" else name)
        made = export(run, name, output)
        assert made.dtype == ("float32" if name == "adapter" else "float16")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gemma2", "architecture 'gemma2'"),
        ("llama-biases", "attention biases"),
        ("llama-linear-rope", "rotary"),
    ],
)
def test_what_cannot_be_written_as_gguf(make_run, tmp_path, build, name, said):
    with pytest.raises(InputError, match=said) as error:
        export(make_run(build(name)), "gguf", tmp_path / "out.gguf")
    assert "convert_hf_to_gguf.py" in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "run"}


def test_require_supported_names_the_architectures(build):
    with pytest.raises(InputError, match="llama, qwen2, qwen3 can be written"):
        gguf_file.require_supported(build("gemma2").config)
