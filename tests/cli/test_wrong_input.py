"""Wrong input: exit code 2 and one line that says what is wrong. (pytest tests/cli)"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safesteer.config.load import load_settings
from safesteer.config.settings import EndpointSettings
from safesteer.errors import InputError
from safesteer.prompts import load_prompts


def test_a_process_says_one_line_and_leaves_with_2(new_process, tmp_path):
    outcome = new_process("run", tmp_path / "none.gguf", "-o", tmp_path / "run")
    assert outcome.code == 2
    assert "none.gguf" in outcome.error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "did you mean 'run'"),
        (["run", "--max-stps", "3"], "--max-steps"),
        (["run", "--max-steps", "many"], "'--max-steps'"),
        (["run", "--max-steps", "0"], "train.max_steps = 0"),
        (["run", "--divergence", "genralized"], "generalized"),
        (["run", "--config", "smolm2"], "no recipe named 'smolm2'"),
        (["run", "--config", "none.yaml"], "none.yaml"),
        (["run", "--set", "train.max_stps=3"], "did you mean 'max_steps'"),
        (["run", "--set", "updates"], "section.key=value"),
        (["run", "--harmful", "none.jsonl"], "none.jsonl"),
        (["run", "a", "b"], "b"),
        (["eval"], "RUN_OR_MODEL"),
        (["eval", "x", "--base", "--teacher"], "exclude"),
        (["generate", "x"], "--prompts"),
        (["recipes", "shwo"], "did you mean 'show'"),
        (["recipes", "show", "none"], "no recipe named 'none'"),
    ],
)
def test_wrong_words(safesteer, arguments, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    outcome = safesteer(*arguments)
    assert outcome.code == 2
    assert said in outcome.error.replace("Did", "did")
    assert not list(tmp_path.iterdir())


def test_a_config_file_with_an_unknown_key_or_value(safesteer, tmp_path):
    config = tmp_path / "mine.yaml"
    for text, said in [
        ("train:\n  max_step: 3\n", "did you mean 'max_steps'"),
        ("trian:\n  max_steps: 3\n", "train"),
        ("train: 3\n", "train"),
        ("train:\n  max_steps: 3\n learning_rate: 1\n", "not valid YAML"),
        ("evaluate:\n  advanced:\n    batch_size: 0\n", "evaluate.advanced.batch_size = 0"),
    ]:
        config.write_text(text, "utf-8")
        outcome = safesteer("run", "--config", config, "-o", tmp_path / "run", "--max-steps", "2")
        assert outcome.code == 2
        assert said in outcome.error and "mine.yaml" in outcome.error


def test_models_that_are_none(safesteer, tmp_path):
    empty = tmp_path / "folder"
    empty.mkdir()
    truncated = tmp_path / "cut.gguf"
    truncated.write_bytes(b"GGUF\x03\x00\x00\x00")
    text = tmp_path / "text.gguf"
    text.write_text("not a model")
    for number, (model, said) in enumerate(
        [
            (empty, "config.json"),
            (truncated, "cut.gguf"),
            (text, "text.gguf"),
            (tmp_path / "none", "no such model"),
            ("owner/none", "owner/none"),
        ]
    ):
        outcome = safesteer("run", model, "-o", tmp_path / f"run-{number}", "--quiet")
        assert outcome.code == 2
        assert said in outcome.error


def test_prompt_files_that_cannot_be_used(safesteer, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"Question {n}?"} for n in range(8)]
    for text, arguments, said in [
        ("", [], "holds no prompts"),
        ("".join(json.dumps(row) + "\n" for row in rows), ["--column", "promt"], "'prompt'"),
        ('{"prompt": "cut of', [], "line 1"),
    ]:
        prompts.write_text(text, "utf-8")
        outcome = safesteer("run", "--harmful", prompts, "-o", tmp_path / "run", *arguments)
        assert outcome.code == 2
        assert said in outcome.error


def test_folders_that_belong_to_something_else(
    safesteer, finished_run, tiny_model_folder, tmp_path
):
    (tmp_path / "thesis.txt").write_text("mine")
    outcome = safesteer("run", tiny_model_folder, "-o", tmp_path)
    assert outcome.code == 2
    assert "not empty" in outcome.error
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_model_folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_text("utf-8"))
    (other / "config.json").write_text(json.dumps({**config, "rope_theta": 20000.0}), "utf-8")
    outcome = safesteer("run", other, "-o", finished_run)
    assert outcome.code == 2
    assert "holds a run of another model" in outcome.error


def test_a_run_keeps_its_own_settings_and_folder(safesteer, finished_run, tmp_path):
    assert "--output-dir" in safesteer("train", finished_run, "-o", tmp_path).error
    assert "--set" in safesteer("train", finished_run, "-c", "mine").error


def test_no_teacher_without_a_run(safesteer, tiny_model_folder):
    outcome = safesteer("eval", tiny_model_folder, "--teacher", "--quiet")
    assert outcome.code == 2
    assert "has no teacher" in outcome.error


def test_duplicates_are_kept_only_where_asked(tmp_path: Path):
    file = tmp_path / "twice.json"
    file.write_text('["a", "b", "a"]')
    assert [p.text for p in load_prompts(file)] == ["a", "b"]
    assert [p.text for p in load_prompts(file, keep_duplicates=True)] == ["a", "b", "a"]


@pytest.mark.parametrize(
    "address",
    ["http://user:hush@host/v1", "http://host/v1?api_key=hush", "http://host/v1?Token=hush"],
)
def test_a_secret_in_an_address_is_neither_written_nor_shown(safesteer, address, tmp_path):
    """Settings are files that people share; the key's place is the environment."""
    setting = f"evaluate.endpoint.base_url={address}"
    outcome = safesteer("run", "-o", tmp_path / "run", "--set", setting)
    assert outcome.code == 2
    assert "api_key_env" in outcome.error and "hush" not in outcome.error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-hush",
        "sk_hush",
        "hf_hush",
        "AIzahush",
        "hush0" * 8,  # letters and digits alone
        "hush_" * 13,  # longer than any name
        "1hush",
        "hush hush",
        "",
    ],
)
def test_a_key_in_place_of_its_variable_is_refused_and_not_shown(key):
    """Settings are written into the run, where a key has no place."""
    with pytest.raises(InputError) as raised:
        load_settings(overrides=[f'evaluate.endpoint.api_key_env="{key}"'])
    assert "evaluate.endpoint.api_key_env: expected the name" in str(raised.value)
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HF_TOKEN", "_key2", "JUDGE", "sky_key"])
def test_names_of_variables_are_taken(name):
    assert EndpointSettings(api_key_env=name).api_key_env == name
