"""The commands on a tiny model with random weights. (pytest tests/cli)"""

from __future__ import annotations

import io
import json
import re
import sys

import yaml

from safesteer import __version__
from safesteer.cli.options import SETTINGS
from safesteer.config.settings import Settings
from safesteer.runs.target import find_target


def read_lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_run_leaves_everything_that_is_promised(finished_run):
    for name in (
        "config.yaml",
        "manifest.json",
        "direction/direction.safetensors",
        "direction/direction.json",
        "tokens/safety_tokens.json",
        "train/metrics.jsonl",
        "adapter/adapter_config.json",
        "eval/base.json",
        "eval/teacher.json",
        "eval/aligned.json",
        "eval/samples/aligned-harmful.jsonl",
    ):
        assert (finished_run / name).is_file(), name
    screen = (finished_run.parent / "screen.txt").read_text("utf-8")
    for said in ("base", "teacher", "aligned", "harmful", "where the time went", "PeftModel"):
        assert said in screen
    # No prompt and no answer is printed.
    for row in read_lines(finished_run / "eval" / "samples" / "aligned-harmful.jsonl"):
        assert row["prompt"] not in screen


def test_a_finished_run_is_not_done_again(safesteer, finished_run, tiny_model_folder, small):
    before = (finished_run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    outcome = safesteer("run", tiny_model_folder, "-o", finished_run, "--max-steps=2", *small)
    assert outcome.code == 0
    assert outcome.out.count("already done") == 5
    assert (finished_run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert safesteer("train", finished_run).out.count("already done") == 3


def test_generate_answers_every_row_in_order(safesteer, finished_run, tmp_path):
    prompts, output = tmp_path / "prompts.csv", tmp_path / "answers.jsonl"
    prompts.write_text("instruction,x\nA rather long question?,1\nHi,2\nHi,3\n", "utf-8")
    outcome = safesteer(
        "generate", finished_run, "--prompts", prompts, "--output", output, "--max-new-tokens=3"
    )
    assert outcome.code == 0, outcome.err
    rows = read_lines(output)
    assert [row["prompt"] for row in rows] == ["A rather long question?", "Hi", "Hi"]
    assert all(set(row) == {"prompt", "completion"} for row in rows)
    assert rows[1] == rows[2]


def test_eval_shows_the_run_and_writes_json(safesteer, finished_run, tmp_path):
    file = tmp_path / "aligned.json"
    outcome = safesteer("eval", finished_run, "--json", file)
    assert outcome.code == 0
    stored = json.loads((finished_run / "eval" / "aligned.json").read_text("utf-8"))
    length = json.loads(file.read_text("utf-8")).pop("max_new_tokens")
    assert json.loads(file.read_text("utf-8")) == {**stored, "max_new_tokens": length}
    assert length == 6


def test_eval_with_settings_leaves_the_run_alone(safesteer, finished_run, tmp_path):
    manifest = (finished_run / "manifest.json").read_bytes()
    file = tmp_path / "teacher.json"
    outcome = safesteer("eval", finished_run, "--teacher", "--limit=2", "--json", file)
    assert outcome.code == 0
    content = json.loads(file.read_text("utf-8"))
    assert content["model"] == "teacher"
    assert content["benchmarks"]["harmful"]["n"] == 2
    assert content["benchmarks"]["harmful"]["kind"] == "safety"
    assert (finished_run / "manifest.json").read_bytes() == manifest


def test_eval_of_a_plain_model(safesteer, tiny_model_folder, tmp_path):
    file = tmp_path / "model.json"
    outcome = safesteer(
        "eval", tiny_model_folder, "--limit=2", "--max-new-tokens=3", "--json", file
    )
    assert outcome.code == 0
    assert set(json.loads(file.read_text("utf-8"))["benchmarks"]) == {
        "harmful",
        "harmless",
        "borderline",
    }


def test_chat_shows_both_sides(safesteer, finished_run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n\nAnd now?\n/quit\nnot read\n"))
    outcome = safesteer("chat", finished_run, "--max-new-tokens=3")
    assert outcome.code == 0
    for name in ("base", "aligned"):
        assert outcome.out.count(f"{name}>") == 2


def test_doctor_looks_at_a_model(safesteer, tiny_model_folder):
    outcome = safesteer("doctor", tiny_model_folder)
    assert outcome.code == 0
    for said in ("torch", "layers", "<|im_start|>", "steering works", "memory on", "80 GB"):
        assert said in outcome.out


def test_doctor_needs_no_weights_for_the_memory(safesteer, tiny_model_folder, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_model_folder / "config.json").read_bytes())
    outcome = safesteer("doctor", folder, "--config-only")
    assert outcome.code == 0
    for said in ("direction", "evaluate", "LoRA", "all weights", "80 GB"):
        assert said in outcome.out
    assert "steering works" not in outcome.out
    (folder / "config.json").write_text("{}")
    outcome = safesteer("doctor", folder, "--config-only")
    assert outcome.code == 2
    assert "config.json" in outcome.err


def test_every_option_is_a_key_of_the_settings_and_in_the_help(safesteer, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    values = Settings().model_dump()
    out = safesteer("run", "--help").out
    for option, key in SETTINGS.items():
        assert option in out
        place = values
        for part in key.split("."):
            assert part in place
            place = place[part]


def test_options_win_over_the_file_and_set_over_options(safesteer, tmp_path, monkeypatch):
    from safesteer.pipeline.stages import Pipeline

    monkeypatch.setattr(Pipeline, "run_all", lambda self, stages: None)
    config = tmp_path / "mine.yaml"
    config.write_text("seed: 1\ntrain: {max_steps: 1, learning_rate: 1.0e-4}\nmodel: {id: other}\n")
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF")
    outcome = safesteer(
        "run", gguf, "-o", tmp_path / "run", "-c", config, "--max-steps=2", "--num-tokens=7",
        "--set=train.learning_rate=3e-4", "--set=tokens.num_tokens=9",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text("utf-8"))
    assert written["seed"] == 1
    assert written["train"]["max_steps"] == 2
    assert written["train"]["learning_rate"] == 3e-4
    assert written["tokens"]["num_tokens"] == 9
    assert written["model"]["id"] == str(gguf)


def test_a_config_names_its_model_unless_another_is_given():
    assert find_target(None).settings.model.id == "smollm2-135m"
    qwen = find_target(None, config="qwen3-4b").settings
    other = find_target("owner/other", config="qwen3-4b")
    assert other.settings.model.id == "owner/other"
    assert str(other.path) == "safesteer-runs/other"
    assert qwen.model.id.startswith("Qwen/")
    assert find_target(qwen.model.id).settings == qwen
    published = find_target("owner/other", config="published").settings
    assert published.tokens == qwen.tokens and published.train == qwen.train


def test_version_and_recipes(safesteer):
    assert __version__ in safesteer("--version").out
    out = safesteer("recipes").out
    listed = dict(re.findall(r"^(\S+) +(\S.*?)  +", out, re.MULTILINE))
    assert listed["smollm2-135m"] == "smollm2-135m"
    assert listed["published"] == listed["default"] == "any model"
    assert "For a model that no other recipe names." in out  # each says what it is for
