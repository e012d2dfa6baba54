"""Capabilities through lm-eval: stock tasks on small files, around a tiny model in memory."""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import with_lora

from safesteer.config.settings import EvaluateSettings
from safesteer.errors import InputError, SafeSteerError
from safesteer.evaluate.benchmarks import capability as capabilities
from safesteer.evaluate.benchmarks import load_benchmarks
from safesteer.evaluate.benchmarks.capability import Capability, check_requirements
from safesteer.inference.variant import ModelVariant
from safesteer.models.answer_cache import Cache
from safesteer.teacher import Teacher

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed"
)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Small files in the formats of the real ones."""
    folder = tmp_path / "data"
    sums = [
        {"question": f"{n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(9)
    ]
    write(folder / "gsm8k" / "test.jsonl", sums[:4])
    write(folder / "gsm8k" / "train.jsonl", sums[3:])
    for split, count in (("val", 3), ("dev", 5)):
        rows = [
            {
                "subject": subject,
                "question": f"{subject} {split} {n}?",
                "choices": ["one", "two", "three", "four"],
                "answer": "ABCD"[n % 4],
            }
            for subject in ("virology", "anatomy")
            for n in range(count)
        ]
        write(folder / "mmlu" / f"{split}.jsonl", rows)
    problem = {
        "task_id": "Own/0",
        "prompt": "def add(a, b):\n",
        "entry_point": "add",
        "canonical_solution": "    return a + b\n",
        "test": "def check(f):\n    assert f(2, 3) == 5\n",
    }
    write(folder / "humaneval" / "HumanEval.jsonl", [problem, {**problem, "task_id": "Own/1"}])
    return folder


def prepared(name: str, data: Path, limit: int | None = None) -> Capability:
    (loaded,) = load_benchmarks([name], EvaluateSettings(data_dir=str(data)), {})
    return Capability.prepare(loaded, limit)


@pytest.fixture
def variant(new_chat_model):  # type: ignore[no-untyped-def]
    model = new_chat_model(max_position_embeddings=4096)
    return ModelVariant("model", model, model.model)


@needs_lm_eval
def test_gsm8k_from_files_with_the_stock_prompt(data, variant, monkeypatch, tmp_path):
    """Five examples as turns of a chat, the answer after ####, evenly spaced questions."""
    import lm_eval.models.huggingface as hflm

    asked: list[str] = []

    def answers(self, context, *others, **named):  # type: ignore[no-untyped-def]
        asked.extend(self.tokenizer.batch_decode(context, skip_special_tokens=False))
        right = self.tokenizer(" #### 1", return_tensors="pt")["input_ids"]
        return torch.cat([context, right.expand(len(context), -1)], dim=1)

    monkeypatch.setattr(hflm.HFLM, "_model_generate", answers)
    told: list[tuple[int, int]] = []
    score = prepared("gsm8k", data, limit=2).measure(
        variant, progress=lambda done, total: told.append((done, total))
    )
    entry = score.to_json()
    assert (entry["metric"], entry["value"], entry["n"]) == ("accuracy", 0.5, 2)
    assert entry["source"]["from"] == "gsm8k/test.jsonl, gsm8k/train.jsonl"
    assert entry["harness"]["task"] == "gsm8k" and entry["harness"]["chat_template"]
    assert told[-1] == (2, 2)
    assert [row["prompt"] for row in score.rows()] == ["0 + 1?", "2 + 1?"]
    assert [row["score"] for row in score.rows()] == [1.0, 0.0]
    assert score.rows()[0]["completion"].strip() == "#### 1"
    for text in asked:
        assert text.count("<|im_start|>user") == 6
        assert text.endswith("<|im_start|>assistant\n")


@needs_lm_eval
def test_mmlu_takes_its_examples_from_the_same_subject(data, variant):
    """Without a chat template; the score is the mean over all questions of all subjects."""
    found = prepared("mmlu", data)
    assert set(found.tasks) == {"safesteer_anatomy", "safesteer_virology"}
    assert len(found.picked["safesteer_anatomy"]) == 3
    score = found.measure(variant, batch_size=2)
    rows = score.rows()
    assert [row["category"] for row in rows] == ["anatomy"] * 3 + ["virology"] * 3
    assert {row["completion"] for row in rows} <= set("ABCD")
    assert score.to_json()["value"] == sum(row["score"] for row in rows) / 6
    task = found.tasks["safesteer_virology"]
    (context,) = {instance.args[0] for instance in task.instances if instance.doc_id == 0}
    assert "virology dev 4?" in context and "anatomy" not in context
    assert context.endswith("D. four\nAnswer:") and "<|im_start|>" not in context


@needs_lm_eval
def test_nothing_is_asked_of_git(data, variant, monkeypatch, tmp_path, capfd):
    """lm-eval runs git in the current folder, which prints an error outside a repository."""
    from lm_eval import evaluator

    asked: list[bool] = []
    monkeypatch.setattr(evaluator, "get_git_commit_hash", lambda: asked.append(True))
    monkeypatch.chdir(tmp_path)
    prepared("mmlu", data).measure(variant)
    assert asked == []
    assert "fatal" not in capfd.readouterr().err


@needs_lm_eval
def test_humaneval_runs_the_completed_program(data, variant, monkeypatch):
    import lm_eval.models.huggingface as hflm

    contexts: list[str] = []

    def answers(self, context, *others, **named):  # type: ignore[no-untyped-def]
        contexts.extend(self.tokenizer.batch_decode(context))
        texts = ["    return a + b\n```\nDone.", "    return a\n```"][: len(context)]
        ids = self.tokenizer(texts, return_tensors="pt", padding=True)["input_ids"]
        return torch.cat([context, ids], dim=1)

    monkeypatch.setattr(hflm.HFLM, "_model_generate", answers)
    score = prepared("humaneval", data).measure(variant, batch_size=2)
    assert sorted(row["score"] for row in score.rows()) == [0.0, 1.0]
    assert all("```python\ndef add(a, b):" in context for context in contexts)


@needs_lm_eval
def test_a_finished_task_is_kept(data, variant, tmp_path, monkeypatch):
    found = prepared("mmlu", data, limit=2)
    first = found.measure(variant, Cache(tmp_path / "cache", variant.identity), 2)

    def none(*args: Any, **named: Any) -> None:
        raise AssertionError("the model was asked again")

    monkeypatch.setattr(capabilities, "_model", none)
    again = prepared("mmlu", data, limit=2)
    told: list[tuple[int, int]] = []
    kept = again.measure(
        variant,
        Cache(tmp_path / "cache", variant.identity),
        2,
        lambda done, total: told.append((done, total)),
    )
    assert kept.to_json() == first.to_json() and kept.rows() == first.rows()
    assert told == [(2, 2)]
    with pytest.raises(SafeSteerError, match="asked again"):
        prepared("mmlu", data).measure(variant, Cache(tmp_path / "cache", variant.identity), 2)


@needs_lm_eval
def test_an_adapter_is_measured_with_and_without(data, new_chat_model):
    """Around a PEFT model: the aligned one with its adapter, the base without."""

    def likelihoods(found: Capability) -> list[float]:
        (task,) = found.tasks.values()
        return [round(float(i.resps[0][0]), 4) for i in task.instances]

    def measured(variant: ModelVariant) -> list[float]:
        found = prepared("mmlu", data, limit=1)
        found.measure(variant, batch_size=1)
        return likelihoods(found)

    plain = new_chat_model(max_position_embeddings=4096)
    expected = measured(ModelVariant("model", plain, plain.model))
    model = new_chat_model(max_position_embeddings=4096)
    student = with_lora(model.model)
    assert measured(ModelVariant("base", model, student, Teacher())) == expected
    assert measured(ModelVariant("aligned", model, student)) != expected


@needs_lm_eval
def test_a_question_file_of_another_kind_is_an_error(data):
    write(data / "mmlu" / "val.jsonl", [{"subject": "virolgy", "question": "?", "answer": "A"}])
    with pytest.raises(InputError, match="did you mean 'virology'"):
        prepared("mmlu", data)
    write(data / "humaneval" / "HumanEval.jsonl", [{"prompt": "def f():\n"}])
    with pytest.raises(InputError, match="humaneval: its questions cannot be read"):
        prepared("humaneval", data)


@needs_lm_eval
def test_a_model_whose_context_is_too_short_is_an_error(data, new_chat_model):
    model = new_chat_model(max_position_embeddings=512)
    with pytest.raises(SafeSteerError, match=r"benchmark humaneval: .*maximum sequence length"):
        prepared("humaneval", data).measure(ModelVariant("model", model, model.model))


@needs_lm_eval
def test_local_files_need_no_network(data, variant, monkeypatch):
    """Not even to be counted: nobody is called, although the hub's own switch says online."""
    import datasets

    called: list[Any] = []

    def connect(self, address):  # type: ignore[no-untyped-def]
        called.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    prepared("mmlu", data, limit=1).measure(variant, batch_size=1)
    prepared("humaneval", data)
    assert called == []


def requirements(name: str, data: Path, **settings: Any) -> None:
    chosen = EvaluateSettings(data_dir=str(data), **settings)
    (loaded,) = load_benchmarks([name], chosen, {})
    check_requirements(loaded, chosen)


def test_without_lm_eval_the_extra_is_named(data, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs lm_eval\. Try: pip install 'safesteer\[eval\]'"):
        requirements("gsm8k", data)


@needs_lm_eval
def test_code_is_not_run_unless_allowed(data):
    with pytest.raises(InputError, match="--allow-code-execution"):
        requirements("humaneval", data)
    requirements("humaneval", data, allow_code_execution=True)
