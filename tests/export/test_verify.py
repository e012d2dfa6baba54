"""Differences that verification notices. (pytest tests/export)"""

from __future__ import annotations

import pytest
from tiny import CHAT_TEMPLATE
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from safesteer.errors import SafeSteerError
from safesteer.events import Reporter
from safesteer.export import formats, merged
from safesteer.export.formats import export
from safesteer.export.source import load_source
from safesteer.files import read_json, write_json
from safesteer.runs.directory import RunDirectory

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
        def ask(file, prompts):
            where = {"gguf_file": file.name}
            model = AutoModelForCausalLM.from_pretrained(file.parent, **where)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
            answers = []
            for prompt in prompts:
                ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
                top = model(ids).logits[0, -1].log_softmax(-1).topk(5)
                values = (top.values + shift).tolist()
                found = dict(zip(top.indices.tolist(), values, strict=True))
                answers.append(llama_cpp.Answer(ids.shape[1], found))
            return answers

        return ask

    run = make_run()
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: True)
    monkeypatch.setattr(llama_cpp, "ask", stand_in(0.0))
    made = export(run, "gguf", tmp_path / "out.gguf", dtype="float32")
    assert made.read_by == ["transformers", "llama.cpp"] and made.difference <= EXACT
    monkeypatch.setattr(llama_cpp, "ask", stand_in(0.2))
    with pytest.raises(SafeSteerError, match=r"differs by 0\.2"):
        export(run, "gguf", tmp_path / "other.gguf", dtype="float32")
    assert not (tmp_path / "other.gguf").exists()


def test_an_export_is_compared_on_the_day_of_the_run(make_run, tmp_path, monkeypatch):
    """Its own template would write today's date, and the run's model reads the run's."""
    monkeypatch.setattr("tiny.CHAT_TEMPLATE", "{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE)
    path = make_run()
    manifest = read_json(path / "manifest.json")
    manifest["model"]["date"] = "2025-01-02T03:04:05"
    write_json(path / "manifest.json", manifest)
    source = load_source(RunDirectory.load(path), "aligned", Reporter(), dequantize=True)
    assert source.chat.text([{"role": "user", "content": "Hi"}]).startswith("02 Jan 2025")
    assert export(path, "merged", tmp_path / "out").difference <= EXACT
    template = (tmp_path / "out" / "chat_template.jinja").read_text("utf-8")
    assert "strftime_now" in template
