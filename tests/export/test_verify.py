"""Differences that verification notices. (pytest tests/export)"""

from __future__ import annotations

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from safesteer.errors import SafeSteerError
from safesteer.export import formats, merged
from safesteer.export.formats import export

EXACT = 1e-4


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
