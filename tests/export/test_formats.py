"""Every format gives the run's model, and refuses where it would not. (pytest tests/export)"""

from __future__ import annotations

import json

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from safesteer.direction.vector import Direction
from safesteer.errors import InputError, SafeSteerError
from safesteer.export import formats, gguf_file, merged, steered, teacher
from safesteer.export.formats import export
from safesteer.export.output import RECORD
from safesteer.models.chat import ChatRenderer
from safesteer.teacher import Teacher, demonstrations

EXACT = 1e-4
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
# Constructor, configuration, and what is not as the tiny Llama has it.
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    # More rows than tokens.
    "llama-tied-padded": (
        LlamaForCausalLM,
        LlamaConfig,
        {"tie_word_embeddings": True, "vocab_size": 340},
    ),
    "llama3-rope": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LLAMA3_ROPE}),
    "llama-linear-rope": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LINEAR_ROPE}),
    "llama-biases": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 24}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {"head_dim": 16}),
}


@pytest.fixture
def build(tokenizer):
    """Makes one of `MODELS`, with random biases."""

    def make(name):
        torch.manual_seed(0)
        constructor, config, changes = MODELS[name]
        model = constructor(config(**{**TINY, "vocab_size": len(tokenizer), **changes}))
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                torch.nn.init.normal_(parameter)
        return model

    return make


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


def test_weights_are_stored_in_the_type_of_the_base(make_run, tmp_path):
    made = export(make_run(dtype=torch.bfloat16), "merged", tmp_path / "out")
    assert made.dtype == "bfloat16"


def test_large_weights_are_sharded(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(merged, "SHARD", "50KB")
    made = export(make_run(), "merged", tmp_path / "out")
    assert made.difference <= EXACT
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1


def test_an_adapter_names_its_base_and_loads_with_peft(make_run, tmp_path):
    from peft import AutoPeftModelForCausalLM

    made = export(make_run(), "adapter", tmp_path / "out")
    assert made.difference <= EXACT
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")


def test_all_weights_trained_have_no_adapter(make_run, tmp_path):
    with pytest.raises(InputError, match="--format merged"):
        export(make_run(method="full"), "adapter", tmp_path / "out")


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


@pytest.mark.parametrize("context", ["none", "system-prompt", "refusals"])
@pytest.mark.parametrize("layer", [None, 2])
def test_a_teacher_is_an_ordinary_model(make_run, tmp_path, context, layer):
    if context == "none" and layer is None:
        return
    made = export(
        make_run(context=context, layer=layer, trained=False), "teacher", tmp_path / "out"
    )
    assert made.difference <= EXACT
    names = load_file(tmp_path / "out" / "model.safetensors")
    assert ("model.layers.1.mlp.down_proj.bias" in names) == (layer is not None)


def test_a_teacher_with_tied_weights(make_run, tmp_path, build):
    run = make_run(build("llama-tied-padded"), trained=False)
    assert export(run, "teacher", tmp_path / "out").difference <= EXACT
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


def test_what_a_tool_cannot_read_is_one_line(make_run, tmp_path, monkeypatch):
    def unreadable(source, target):
        raise KeyError("no such thing")

    form = formats.FORMATS["merged"]._replace(read=unreadable)
    monkeypatch.setitem(formats.FORMATS, "merged", form)
    with pytest.raises(SafeSteerError, match="cannot read the export"):
        export(make_run(), "merged", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "layer", "said"),
    [("llama", 0, "before the first block"), ("qwen2", 2, "no bias"), ("gemma2", 2, "no bias")],
)
def test_a_teacher_that_cannot_be_folded(make_run, tmp_path, build, name, layer, said):
    with pytest.raises(InputError, match=said) as error:
        export(make_run(build(name), layer=layer, trained=False), "teacher", tmp_path / "out")
    assert "--format steered" in str(error.value)


def test_a_fold_that_is_not_exact_is_refused(make_run, tmp_path, monkeypatch):
    """Here into a layer of the wrong block, as where a norm stands behind it."""
    right = teacher._last_linear
    monkeypatch.setattr(teacher, "_last_linear", lambda model, layer: right(model, layer - 1))
    with pytest.raises(InputError, match="not exact"):
        export(make_run(trained=False), "teacher", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("context", ["refusals", "demonstrations", "system-prompt"])
def test_a_template_with_the_teachers_context(new_chat_model, context):
    own = {
        "refusals": demonstrations(2, refusals_only=True),
        "demonstrations": demonstrations(3),
        "system-prompt": ({"role": "system", "content": 'It\'s "safe" {{ 1 }}\n\\n caf\u00e9'},),
    }[context]
    plain, other = new_chat_model().chat, new_chat_model().tokenizer
    other.chat_template = teacher.template_with_context(other.chat_template, own)
    user = {"role": "user", "content": "Hi"}
    for messages in ([user], [{"role": "system", "content": "Be brief."}, user]):
        assert ChatRenderer(other).text(messages) == plain.text(
            Teacher(None, own).messages(messages)
        )


@pytest.mark.parametrize("layer", [0, 2])
def test_lm_eval_reads_the_steered_file(make_run, tmp_path, layer):
    pytest.importorskip("lm_eval")
    made = export(make_run(layer=layer, trained=False), "steered", tmp_path / "out")
    assert made.difference <= EXACT and made.read_by == ["lm-eval"]
    content = torch.load(tmp_path / "out" / steered.FILE_NAME, weights_only=True)
    (name,) = content
    assert name == ("layers.1" if layer else "embed_tokens")
    assert content[name]["steering_coefficient"] == 1.5


def test_a_steered_file_needs_steering_and_lm_eval(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(steered.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"safesteer\[eval\]"):
        export(make_run(trained=False), "steered", tmp_path / "out")
    with pytest.raises(InputError, match="not steered"):
        export(make_run(layer=None, trained=False), "steered", tmp_path / "out")


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


def test_another_chat_template_is_noticed(make_run, tmp_path, monkeypatch):
    def spoiled(source, target, dtype):
        merged.write(source, target, dtype)
        with (target / "chat_template.jinja").open("a") as file:
            file.write("!")

    form = formats.FORMATS["merged"]._replace(write=spoiled)
    monkeypatch.setitem(formats.FORMATS, "merged", form)
    with pytest.raises(SafeSteerError, match="other tokens"):
        export(make_run(), "merged", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_llama_cpp_says_is_compared(make_run, tmp_path, monkeypatch):
    """By a stand-in that answers like the file, and one that does not."""
    from safesteer.export import llama_cpp

    def stand_in(shift):
        def reader(file):
            where = {"gguf_file": file.name}
            model = AutoModelForCausalLM.from_pretrained(file.parent, **where)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)

            def ask(prompts):
                answers = []
                for prompt in prompts:
                    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
                    top = model(ids).logits[0, -1].log_softmax(-1).topk(5)
                    values = (top.values + shift).tolist()
                    found = dict(zip(top.indices.tolist(), values, strict=True))
                    answers.append(llama_cpp.Answer(ids.shape[1], found))
                return answers

            return ask

        return reader

    run = make_run()
    monkeypatch.setattr(llama_cpp, "reader", stand_in(0.0))
    made = export(run, "gguf", tmp_path / "out.gguf", dtype="float32")
    assert made.read_by == ["transformers", "llama.cpp"] and made.difference <= EXACT
    monkeypatch.setattr(llama_cpp, "reader", stand_in(0.2))
    with pytest.raises(SafeSteerError, match=r"differs by 0\.2"):
        export(run, "gguf", tmp_path / "other.gguf", dtype="float32")
    assert not (tmp_path / "other.gguf").exists()


def test_biases_are_added_without_changing_the_model(new_chat_model):
    """Folding a direction of zeros: the same logits from a model that has biases."""
    model = new_chat_model().model
    ids = torch.arange(3, 20)[None]
    plain = model(ids).logits
    folded = teacher.folded(model, Direction(torch.zeros(32), 2))
    assert folded.config.mlp_bias and torch.equal(folded(ids).logits, plain)


def test_require_supported_names_the_architectures(build):
    with pytest.raises(InputError, match="llama, qwen2, qwen3 can be written"):
        gguf_file.require_supported(build("gemma2").config)
