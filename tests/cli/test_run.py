"""`safesteer run`: a run, its resumption, and inputs it refuses. (pytest tests/cli)"""

from __future__ import annotations

import json
import signal
import socket

import pytest

from safesteer.distill import vllm


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


def test_a_run_ends_with_its_report(finished_run):
    assert (finished_run / "report.html").is_file()
    assert (finished_run / "README.md").is_file()
    assert (finished_run / "report" / "measurements.json").is_file()
    screen = (finished_run.parent / "screen.txt").read_text("utf-8")
    assert str(finished_run / "report.html") in screen
    assert str(finished_run / "README.md") in screen


def test_a_finished_run_is_skipped(safesteer, finished_run, tiny_model_folder, small):
    before = (finished_run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    outcome = safesteer("run", tiny_model_folder, "-o", finished_run, "--max-steps=2", *small)
    assert outcome.code == 0
    assert outcome.out.count("already done") == 5
    assert (finished_run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert safesteer("train", finished_run).out.count("already done") == 3


def test_an_interrupted_run_resumes_at_its_last_checkpoint(
    start, small, tiny_model_folder, tmp_path
):
    run = tmp_path / "run"
    arguments = ["run", tiny_model_folder, "-o", run, "--max-steps=300", *small]

    def interrupt_after(updates, number):
        """Interrupt after so many training updates; return them and the last line on stderr."""
        seen = []
        process = start(*arguments)
        for line in process.stdout:
            if line.startswith("  step "):
                seen.append(int(line.split()[1].partition("/")[0]))
                if len(seen) == updates:
                    process.send_signal(number)
                    break
        _, err = process.communicate()
        assert process.returncode == 130
        assert err.count("\n") == 1 and err.startswith("interrupted. Resume with: safesteer run ")
        return seen

    assert interrupt_after(5, signal.SIGINT) == [1, 2, 3, 4, 5]
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    assert manifest["stages"]["train"]["status"] == "interrupted"
    reached = max(int(path.name.rpartition("-")[2]) for path in run.glob("train/checkpoint-*"))
    assert reached >= 4
    assert interrupt_after(1, signal.SIGTERM) == [reached + 1]


def test_models_that_cannot_be_loaded(safesteer, tmp_path):
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


def test_a_missing_benchmark_file_is_reported_before_the_first_stage(
    safesteer, tiny_model_folder, tmp_path, small
):
    run = tmp_path / "run"
    outcome = safesteer(
        "run", tiny_model_folder, "-o", run, *small, "--benchmarks=advbench", "--data-dir", tmp_path
    )
    assert outcome.code == 2
    assert "advbench/advbench.csv" in outcome.error
    assert not (run / "direction").exists()


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
    monkeypatch.setattr(vllm, "find_spec", lambda name: name)


def test_vllm_is_not_installed(fails, monkeypatch):
    monkeypatch.setattr(vllm, "find_spec", lambda name: None)
    assert "pip install 'safesteer[vllm]'" in fails()


def test_no_cuda_device(fails, installed):
    assert "needs a CUDA device, and the model is on 'cpu'" in fails("--device=cpu")


def test_no_server(fails, installed, monkeypatch):
    monkeypatch.setattr(vllm, "_check_device", lambda device: None)
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


def test_a_model_worse_than_its_base_ends_with_1(safesteer, worse_run, tmp_path, monkeypatch):
    """It is said in the last line, on top of page and card; nothing is pushed or exported."""
    sent = []
    monkeypatch.setattr("safesteer.pipeline.align.check_hub", lambda hub: set())
    monkeypatch.setattr("safesteer.pipeline.align.push", lambda run, hub: sent.append(hub))
    outcome = safesteer("run", worse_run, "--push-to-hub", "me/safe")
    said = "refuses fewer harmful prompts than its base (-2 of 4: -50.0 points, 95% -90 to -10)"
    assert outcome.code == 1 and not sent
    assert f"the aligned model {said}. The run is kept" in outcome.error
    assert "--allow-worse" in outcome.error
    assert "before and after" in outcome.out
    for form, output in (("adapter", tmp_path / "out"), ("commands", tmp_path / "lines.sh")):
        arguments = ("export", worse_run, "--format", form, "--output", output)
        outcome = safesteer(*arguments)
        assert outcome.code == 1 and said in outcome.error and not output.exists()
        assert safesteer(*arguments, "--allow-worse").code == 0 and output.exists()
    assert safesteer("report", worse_run).code == 0
    page, card = ((worse_run / name).read_text("utf-8") for name in ("report.html", "README.md"))
    assert f"The aligned model is worse than its base: it {said}." in page
    assert page.index(said) < page.index("Before and after")
    warning = f"**This model is worse than its base:** it {said}."
    assert card.index(warning) < card.index("**Base:**")
    assert safesteer("run", worse_run, "--allow-worse").code == 0
