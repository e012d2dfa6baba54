"""An adapter as GGUF is the run's adapter, by hooks and by llama.cpp. (pytest tests/export)"""

from __future__ import annotations

import gguf
import pytest
from peft import LoraConfig, get_peft_model

from safesteer.errors import InputError, SafeSteerError
from safesteer.export import lora_gguf
from safesteer.export.formats import export
from safesteer.export.llama_cpp import is_installed
from safesteer.files import load_tensors

EXACT = 1e-4
READ_BY = ["gguf", "llama.cpp"] if is_installed() else ["gguf"]


@pytest.mark.parametrize("name", ["llama", "llama-tied-padded", "llama3-rope", "qwen2", "qwen3"])
def test_the_file_is_the_adapter(make_run, tmp_path, build, name):
    run = make_run(build(name))
    made = export(run, "lora-gguf", tmp_path / "out.gguf")
    assert made.difference <= EXACT and made.dtype == "float32" and made.read_by == READ_BY
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    facts = {key: field.contents() for key, field in reader.fields.items()}
    assert facts["general.type"] == "adapter" and facts["adapter.type"] == "lora"
    assert facts["general.architecture"] == name.split("-")[0].removesuffix("3" * (name[0] == "l"))
    assert facts["adapter.lora.alpha"] == 8.0  # PEFT's default, as the run was trained
    shapes = {tensor.name: list(tensor.data.shape) for tensor in reader.tensors}
    assert shapes["blk.3.ffn_down.weight.lora_a"] == [4, 64]
    assert shapes["blk.3.ffn_down.weight.lora_b"] == [32, 4]
    assert len(shapes) == 2 * 2 * 4  # factors, targets, layers
    assert {path.name for path in tmp_path.iterdir()} == {"base", "run", "out.gguf"}


def test_the_rows_of_queries_are_in_llama_cpps_order(make_run, tmp_path):
    run = make_run()
    export(run, "lora-gguf", tmp_path / "out.gguf")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    ours = load_tensors(run / "adapter" / "adapter_model.safetensors")[name]
    tensors = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    theirs = tensors["blk.0.attn_q.weight.lora_b"]
    assert (theirs[1] == ours[8].numpy()).all()  # heads of 16 rows: 0, 8, 1, 9, ...


def test_layers_of_other_ranks_and_scales(new_chat_model):
    """One alpha for all: what it cannot say goes into B."""
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"down_proj": 2},
        alpha_pattern={"down_proj": 3},
        init_lora_weights=False,
    )
    base = new_chat_model().model
    student = get_peft_model(base, config)
    alpha, tensors = lora_gguf._factors(student, base.config)
    layer = student.base_model.model.model.layers[0].mlp.down_proj
    a, b = (tensors[f"blk.0.ffn_down.weight.lora_{x}"] for x in "ab")
    wanted = layer.get_delta_weight("default")
    assert alpha == 8.0 and (alpha / 2 * b @ a - wanted).abs().max() < 1e-6


def test_rows_in_the_wrong_order_are_not_kept(make_run, tmp_path, monkeypatch):
    wrong = lambda name, weight, config, back=False: weight.flip(0) if back else weight  # noqa: E731
    monkeypatch.setattr(lora_gguf, "reordered", wrong)
    with pytest.raises(SafeSteerError, match="differs by"):
        export(make_run(), "lora-gguf", tmp_path / "out.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "run"}


@pytest.mark.skipif(not is_installed(), reason="llama.cpp (xllamacpp) is not installed")
def test_llama_cpp_finds_a_wrong_adapter(make_run, tmp_path, monkeypatch):
    """The hooks see what was meant, the file holds queries in transformers' order."""
    monkeypatch.setattr(lora_gguf, "reordered", lambda name, weight, config, back=False: weight)
    with pytest.raises(SafeSteerError, match="differs by"):
        export(make_run(), "lora-gguf", tmp_path / "out.gguf")


def test_a_run_without_an_adapter(make_run, tmp_path):
    with pytest.raises(InputError, match=r"no adapter\. Try: --format gguf"):
        export(make_run(method="full"), "lora-gguf", tmp_path / "out.gguf")


def test_a_base_that_is_an_adapter(make_run, tmp_path, monkeypatch):
    whole = lambda model: ("folder", tmp_path / "base", [tmp_path / "earlier"])  # noqa: E731
    run = make_run()
    monkeypatch.setattr("safesteer.export.source.whole_model", whole)
    with pytest.raises(InputError, match="itself an adapter"):
        export(run, "lora-gguf", tmp_path / "out.gguf")


def test_an_architecture_without_a_name(make_run, tmp_path, build):
    with pytest.raises(InputError, match=r"convert_lora_to_gguf\.py"):
        export(make_run(build("gemma2")), "lora-gguf", tmp_path / "out.gguf")
