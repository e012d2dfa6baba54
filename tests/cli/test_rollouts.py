"""`--rollouts vllm` where it cannot be: said in one line, before the stages that cost time."""

from __future__ import annotations

import socket

import pytest
import yaml

from safesteer.distill import vllm as rollouts


@pytest.fixture
def fails(safesteer, tiny_model_folder, tmp_path):
    """Runs the tiny model with vLLM and gives the line of its error; no stage was begun."""

    def run(*options):
        path = tmp_path / "run"
        outcome = safesteer("run", tiny_model_folder, "-o", path, "--rollouts=vllm", *options)
        assert outcome.code == 2
        assert not (path / "direction").exists() and not (path / "tokens").exists()
        return outcome.error

    return run


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(rollouts, "find_spec", lambda name: name)


def test_vllm_is_not_installed(fails, monkeypatch):
    monkeypatch.setattr(rollouts, "find_spec", lambda name: None)
    assert "pip install 'safesteer[vllm]'" in fails()


def test_no_cuda_device(fails, installed):
    assert "needs a CUDA device, and the model is on 'cpu'" in fails("--device=cpu")


def test_no_server(fails, installed, monkeypatch):
    monkeypatch.setattr(rollouts, "_check_device", lambda device: None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        error = fails(
            "--set=train.advanced.vllm.mode=server",
            f"--set=train.advanced.vllm.server_base_url={url}",
        )
    assert f"'{url}': no vLLM server answers there" in error and "vllm serve" in error


def test_wrong_addresses(fails):
    error = fails("--set=train.advanced.vllm.server_base_url=http://user:hidden@host:8000")
    assert "train.advanced.vllm.server_base_url" in error and "hidden" not in error
    assert "train.advanced.vllm.server_base_url" in fails(
        "--set=train.advanced.vllm.server_base_url=localhost:8000"
    )
    assert "'colocate'" in fails("--set=train.advanced.vllm.mode=colocated")


def test_a_trained_run_needs_no_vllm(safesteer, finished_run, monkeypatch):
    """Who wrote the rollouts is no reason to train again."""
    monkeypatch.setattr(rollouts, "find_spec", lambda name: None)
    before = (finished_run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    config = (finished_run / "config.yaml").read_text()
    assert yaml.safe_load(config)["train"]["rollouts"] == "transformers"
    outcome = safesteer("train", finished_run, "--rollouts=vllm")
    (finished_run / "config.yaml").write_text(config)  # other tests read the run
    assert outcome.code == 0, outcome.err
    assert (finished_run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == before
