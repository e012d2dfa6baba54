"""Command lines for other tools. (pytest tests/export)"""

from __future__ import annotations

import shlex

import pytest

from safesteer.config.load import load_settings
from safesteer.export.commands import commands
from safesteer.files import write_json


def test_commands_name_what_is_there(command, make_run, tmp_path):
    run = make_run()
    code, out, _ = command(run, "--format", "commands")
    assert code == 0
    assert f"--enable-lora --max-lora-rank 8 --lora-modules base-safesteer={run}/adapter" in out
    for word in ("vllm serve", "ollama create", "lm_eval --model hf", "lm_eval --model steered"):
        assert word in out
    assert "llama-server -m BASE.gguf --lora base-safesteer-lora.gguf --jinja\n" in out
    code, _, _ = command(run, "--format", "commands", "--output", tmp_path / "lines.sh")
    assert code == 0 and (tmp_path / "lines.sh").read_text("utf-8") == out
    assert command(run, "--format", "commands", "--output", tmp_path / "lines.sh")[0] == 2


def test_commands_of_other_runs(tmp_path):
    settings = load_settings("default", model={"id": "org/Model", "revision": "v1"})
    with pytest.raises(Exception, match="not trained"):
        commands(tmp_path, settings)
    write_json(tmp_path / "adapter" / "adapter_config.json", {"r": 16})
    assert "vllm serve org/Model --revision v1 --enable-lora --max-lora-rank 16" in commands(
        tmp_path, settings
    )
    settings.model.template_kwargs = {"enable_thinking": False}
    assert '"chat_template_args": {"enable_thinking": false}' in commands(tmp_path, settings)
    line = "--jinja --chat-template-kwargs '{\"enable_thinking\": false}'"
    assert f"model-safesteer-lora.gguf {line}\n" in commands(tmp_path, settings)
    (tmp_path / "model").mkdir()
    lines = commands(tmp_path, settings)
    assert "llama-server -m BASE.gguf" not in lines
    assert f"vllm serve {tmp_path}/model" in lines and "--lora-modules" not in lines


def test_a_name_with_a_space_stays_one_argument(tmp_path):
    settings = load_settings("default", model={"id": str(tmp_path / "My Model")})
    write_json(tmp_path / "adapter" / "adapter_config.json", {"r": 16})
    module = f"my model-safesteer={tmp_path}/adapter"
    lines = [line for line in commands(tmp_path, settings).splitlines() if "--lora-modules" in line]
    assert [module in shlex.split(line) for line in lines] == [True]
