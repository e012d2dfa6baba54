"""The whole job on a tiny model: files, skipping, kills and resuming, loading the result."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import graded
from peft import PeftModel
from tiny import plain
from transformers import AutoModelForCausalLM, AutoTokenizer

import safesteer
import safesteer.config.load
import safesteer.config.settings
from safesteer.distill import config as distill_config
from safesteer.errors import InputError, SafeSteerError
from safesteer.evaluate.stored import read_results
from safesteer.events import Reporter
from safesteer.models.chat import ChatRenderer
from safesteer.models.files import fingerprint
from safesteer.models.generate import Decoding, generate
from safesteer.models.load import load_model
from safesteer.pipeline.stages import Pipeline
from safesteer.prompts import load_prompt_set
from safesteer.runs.directory import RunDirectory

TIMING = {"seconds", "tokens_per_second"}
# Runs the job once for each moment of its arguments, in a process that kills itself there.
# The parent only imports, so that a fork is as good as a fresh process and starts at once.
KILLED = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
from safesteer.pipeline import align as job
from safesteer.distill import metrics
from safesteer import safety_tokens as select

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def during_tokens():
    original = select.generate
    def generate(*args, **kwargs):
        original(*args, **kwargs)
        die()
    select.generate = generate

def during_saving():
    def on_save(self, args, state, control, **kwargs):
        die()
    metrics.MetricsFile.on_save = on_save

def after_update_3():
    original = metrics.MetricsFile.on_log
    def on_log(self, args, state, *rest, **kwargs):
        original(self, args, state, *rest, **kwargs)
        if state.global_step == 3:
            die()
    metrics.MetricsFile.on_log = on_log

def after_adapter():
    original = os.replace
    def replace(source, target):
        original(source, target)
        if os.path.basename(target) == "adapter":
            die()
    os.replace = replace

def never():
    pass

model, output_dir, sections, *moments = sys.argv[1:]
for moment in moments:
    child = os.fork()
    if child == 0:
        globals()[moment]()
        job.align(model, output_dir, **json.loads(sections))
        os._exit(0)
    print(moment, os.waitpid(child, 0)[1], flush=True)
"""


class Events(Reporter):
    """Remembers what a run told."""

    def __init__(self) -> None:
        self.skips: list[str] = []
        self.stages: list[str] = []
        self.results: list[str] = []

    def skipped(self, name: str) -> None:
        self.skips.append(name)

    def stage(self, name: str, detail: str = "") -> None:
        self.stages.append(name)

    def result(self, stage: str, content: dict[str, Any]) -> None:
        self.results.append(stage)


@pytest.fixture(scope="module")
def prompt_files(new_prompt_sets: Callable[[int, int], dict[str, str]]) -> dict[str, str]:
    """Three small prompt sets that name their splits."""
    return new_prompt_sets(6, 3)


@pytest.fixture(scope="module")
def sections(prompt_files: dict[str, str]) -> Callable[..., dict[str, Any]]:
    """Settings of a job of seconds; keywords change keys of the sections."""

    def make(**changes: dict[str, Any]) -> dict[str, Any]:
        defaults: dict[str, dict[str, Any]] = {
            "prompts": prompt_files,
            "direction": {
                "source": "refuse-comply",
                "advanced": {"layers": [1, 2], "coefficients": [1.0], "finalists": 1},
            },
            "tokens": {
                "num_tokens": 20,
                "num_generations": 2,
                "horizon": 4,
                "advanced": {"num_prompts": 3},
            },
            "train": {
                "max_steps": 4,
                "prompts_per_step": 2,
                "num_generations": 2,
                "anchor_share": 0.5,
                "max_completion_length": 6,
                "learning_rate": 1e-2,
                "advanced": {"save_steps": 2},
                "lora": {"r": 4},
            },
            "evaluate": {"max_new_tokens": 5, "limit": 2, "drift_prompts": 2},
        }
        for section, content in changes.items():
            defaults[section] = {**defaults.get(section, {}), **content}
        return plain(**defaults)

    return make


def job(
    model: Path, output_dir: Path, sections: dict[str, Any], events: Any = None
) -> RunDirectory:
    settings = safesteer.config.load.load_settings(
        model={"id": str(model), "dtype": "float32", "device": "cpu"}, **sections
    )
    with RunDirectory.open(output_dir, settings=settings, model=fingerprint(settings.model)) as run:
        Pipeline(run, events).run_all()
    return run


@pytest.fixture(scope="module")
def finished(tiny_model_folder, sections, tmp_path_factory):  # type: ignore[no-untyped-def]
    """A run with LoRA that nothing interrupted."""
    return job(tiny_model_folder, tmp_path_factory.mktemp("whole") / "run", sections())


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def metrics_of(run: Path) -> list[dict[str, Any]]:
    lines = (run / "train" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]


def samples_of(run: Path, name: str) -> list[str]:
    lines = (run / "eval" / "samples" / f"{name}-harmful.jsonl").read_text().splitlines()
    return [json.loads(line)["completion"] for line in lines]


def answers(model: Any, tokenizer: Any, prompt_files: dict[str, str]) -> list[str]:
    """Greedy answers of any model to the harmful test prompts that the run judged."""
    chat = ChatRenderer(tokenizer)
    prompts = load_prompt_set("harmful", prompt_files["harmful"]).test[:2]
    rendered = [chat.ids(prompt.messages) for prompt in prompts]
    return [chat.decode(ids) for ids in generate(model, tokenizer, rendered, Decoding(5))]


def test_a_run_leaves_the_files_of_the_contract(finished):
    """Direction, tokens, metrics, adapter and evaluations; every stage done with its outputs."""
    names = set(files_below(finished.path))
    assert {
        "config.yaml",
        "manifest.json",
        "direction/direction.safetensors",
        "direction/direction.json",
        "tokens/safety_tokens.json",
        "train/metrics.jsonl",
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "adapter/tokenizer_config.json",
        "eval/base.json",
        "eval/teacher.json",
        "eval/aligned.json",
    } <= names
    assert not [name for name in names if "partial" in name or name.endswith(".tmp")]
    # Checkpoints are transformers' own and hold pickles; nothing else may.
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pth")) and n[:6] != "train/"]
    stages = finished.manifest["stages"]
    assert list(stages) == ["direction", "tokens", "train", "evaluate", "report"]
    assert all(entry["status"] == "done" and entry["outputs"] for entry in stages.values())
    results = read_results(finished.path)
    assert set(results) == {"base", "teacher", "aligned"}
    for name, benchmarks in results.items():
        assert {"harmful", "harmless", "borderline"} <= benchmarks.keys()
        assert ("divergence" in benchmarks) == (name == "aligned")
        for entry in benchmarks.values():
            assert {"metric", "value", "ci95", "n", "judge", "kind"} <= entry.keys()


def test_base_and_aligned_answers_are_those_of_the_plain_models(
    finished, tiny_model_folder, prompt_files
):
    """Also in the process that trained: the base without the adapter, the aligned model with it.

    Both are loaded again here with transformers and peft alone.
    """
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(finished.path / "adapter")
    plain = answers(base, tokenizer, prompt_files)
    adapted = PeftModel.from_pretrained(base, finished.path / "adapter").eval()
    aligned = answers(adapted, tokenizer, prompt_files)
    assert samples_of(finished.path, "base") == plain
    assert samples_of(finished.path, "aligned") == aligned
    teacher = samples_of(finished.path, "teacher")
    assert plain != aligned and teacher != plain and teacher != aligned
    assert read_results(finished.path)["aligned"]["divergence"]["value"] > 1e-4


def test_the_adapter_names_its_base(finished, tiny_model_folder):
    """With a whole path, so that it loads from any folder."""
    config = json.loads((finished.path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_model_folder)
    assert load_model(str(finished.path / "adapter")).layers == 4


def test_a_second_run_does_nothing(finished, tiny_model_folder, sections):
    """Every stage is skipped, the model is not even loaded, and no file changes."""
    before = files_below(finished.path)
    events = Events()
    job(tiny_model_folder, finished.path, sections(), events)
    assert events.skips == ["direction", "tokens", "train", "evaluate", "report"]
    assert events.stages == [] and events.results == []
    after = files_below(finished.path)
    before.pop("manifest.json"), after.pop("manifest.json")
    assert after == before


def test_a_changed_setting_runs_what_depends_on_it(finished, tiny_model_folder, sections, tmp_path):
    """Another learning rate: direction and tokens stay, training and evaluation run again."""
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    events = Events()
    changed = sections(train={"learning_rate": 5e-3, "max_steps": 1})
    job(tiny_model_folder, copy, changed, events)
    assert events.skips == ["direction", "tokens"]
    assert len(metrics_of(copy)) == 1
    assert [path.name for path in (copy / "train").glob("checkpoint-*")] in ([], ["checkpoint-1"])
    assert (copy / "adapter" / "adapter_model.safetensors").read_bytes() != (
        finished.path / "adapter" / "adapter_model.safetensors"
    ).read_bytes()


def test_a_killed_run_ends_like_one_that_was_not(finished, tiny_model_folder, sections, tmp_path):
    """The same tokens, metrics, adapter and evaluation, byte for byte.

    SIGKILL comes while tokens are sampled, while a checkpoint is saved, between checkpoints, and
    after the adapter was moved into place.
    """
    moments = ("during_tokens", "during_saving", "after_update_3", "after_adapter", "never")
    given = sections(model={"dtype": "float32", "device": "cpu"})
    source = str(Path(safesteer.__file__).parents[1])
    run = tmp_path / "run"
    model = given.pop("model")
    # `align` takes the model's id on its own; the rest of its section is in a config file.
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"model": model}))
    arguments = [str(tiny_model_folder), str(run), json.dumps({**given, "config": str(config)})]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments, *moments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": source, "PYTHONHASHSEED": "12345"},
        timeout=280,
        check=False,
    )
    assert done.stdout.split() == [
        *("during_tokens", "9", "during_saving", "9", "after_update_3", "9"),
        *("after_adapter", "9", "never", "0"),
    ], done.stderr[-3000:]
    for folder in ("direction", "tokens", "adapter", "eval"):
        expected, found = files_below(finished.path / folder), files_below(run / folder)
        assert expected.keys() == found.keys()
        assert [name for name in expected if expected[name] != found[name]] == []
    assert metrics_of(run) == metrics_of(finished.path)
    assert not (run / "adapter.partial").exists()


@pytest.mark.parametrize("context", ["system-prompt", "demonstrations"])
def test_a_teacher_by_context_and_all_weights(
    context, tiny_model_folder, sections, prompt_files, tmp_path, monkeypatch
):
    """Full fine-tuning leaves a model folder that transformers loads and that answers as judged."""
    monkeypatch.setattr(distill_config, "WARMUP_RATIO", 0.0)
    given = sections(
        teacher={"strength": 0, "context": context, "demonstrations": 1},
        train={"method": "full", "max_steps": 1},
    )
    run = job(tiny_model_folder, tmp_path / "run", given)
    assert not (run.path / "adapter").exists()
    model = AutoModelForCausalLM.from_pretrained(run.path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run.path / "model")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    assert samples_of(run.path, "aligned") == answers(model, tokenizer, prompt_files)
    assert samples_of(run.path, "base") == answers(base, tokenizer, prompt_files)
    assert samples_of(run.path, "teacher") != samples_of(run.path, "base")


def test_a_run_without_all_verdicts_is_unfinished(
    finished, tiny_model_folder, sections, tmp_path, serve
):
    """It says so, its report too, and the same command asks for what is missing alone."""
    run, broken = tmp_path / "run", [True]
    shutil.copytree(finished.path, run)

    def answer(question: str, number: int) -> Any:
        return (500, {}, "") if broken[0] and number % 2 else graded()

    server = serve(answer)
    judged = {
        "judges": ["endpoint", "offline-refusal"],
        "endpoint": {
            "base_url": server.url,
            "model": "judge",
            "advanced": {"retries": 0, "concurrency": 1},
        },
    }
    events = Events()
    missing = r"\d+ of 18 answers have no verdict by endpoint=judge \(the server answers 500\)"
    with pytest.raises(SafeSteerError, match=missing) as error:
        job(tiny_model_folder, run, sections(evaluate=judged), events)
    assert error.value.exit_code == 1 and "\n" not in str(error.value)
    assert events.stages.count("evaluate") and "evaluate" in events.results
    unfinished = RunDirectory.load(run)
    assert unfinished.manifest["stages"]["evaluate"]["status"] == "incomplete"
    assert unfinished.output_hashes("evaluate") == {}
    for page in ("report.html", "README.md"):
        assert "by endpoint=judge (the server answers 500)" in (run / page).read_text("utf-8")
    asked, broken[0] = len(server.requests), False
    unfinished.check_outputs("evaluate")
    (run / "eval" / "aligned.json").write_text("{}")
    with pytest.raises(InputError, match=r"aligned\.json was damaged"):
        unfinished.check_outputs("evaluate")
    job(tiny_model_folder, run, sections(evaluate=judged))
    questions = [request["messages"][0]["content"] for request in server.requests]
    assert len(questions[asked:]) == asked - asked // 2
    assert set(questions[asked:]) == set(questions[:asked:2])
    assert RunDirectory.load(run).output_hashes("evaluate")
    for page in ("report.html", "README.md"):
        assert "incomplete" not in (run / page).read_text("utf-8")


def test_a_stage_without_the_one_before_it_is_an_input_error(tiny_model_folder, sections, tmp_path):
    """The error names the stage that is missing and the command that runs it."""
    settings = safesteer.config.load.load_settings(
        model={"id": str(tiny_model_folder)}, **sections()
    )
    with RunDirectory.open(
        tmp_path / "run", settings=settings, model=fingerprint(settings.model)
    ) as run:
        pipeline = Pipeline(run)
        with pytest.raises(InputError, match="the stage 'direction' is not finished"):
            pipeline.tokens()
        with pytest.raises(InputError, match="the stage 'train' is not finished"):
            _ = pipeline.student
