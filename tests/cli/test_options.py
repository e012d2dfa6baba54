"""Options become settings: their order, their help, their errors. (pytest tests/cli)"""

from __future__ import annotations

import pytest
import yaml

from safesteer.cli.options import SETTINGS
from safesteer.config.settings import Settings


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


def test_options_win_over_the_file_and_set_over_options(
    safesteer, tiny_model_folder, tmp_path, monkeypatch
):
    from safesteer.pipeline.stages import Pipeline

    monkeypatch.setattr(Pipeline, "run_all", lambda self, stages: None)
    config = tmp_path / "mine.yaml"
    config.write_text("seed: 1\ntrain: {max_steps: 1, learning_rate: 1.0e-4}\nmodel: {id: other}\n")
    outcome = safesteer(
        "run", tiny_model_folder, "-o", tmp_path / "run", "-c", config, "--max-steps=2",
        "--num-tokens=7", "--set=train.learning_rate=3e-4", "--set=tokens.num_tokens=9",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text("utf-8"))
    assert written["seed"] == 1
    assert written["train"]["max_steps"] == 2
    assert written["train"]["learning_rate"] == 3e-4
    assert written["tokens"]["num_tokens"] == 9
    assert written["model"]["id"] == str(tiny_model_folder)


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
