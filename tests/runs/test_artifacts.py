"""Outputs of a run are used only as they were written, with the base that they were made for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny import JOB_OF_SECONDS

import safesteer
from safesteer import files
from safesteer.config.settings import ModelSettings, Settings
from safesteer.errors import InputError
from safesteer.models.files import fingerprint
from safesteer.runs.artifacts import RunArtifacts, load_variants
from safesteer.runs.directory import RunDirectory
from safesteer.runs.target import find_target


@pytest.fixture(scope="module")
def finished(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and its own copy of the base; tests change copies of both."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(tiny_model_folder, folder / "base")
    safesteer.align(str(folder / "base"), folder / "run", **JOB_OF_SECONDS)
    return folder


@pytest.fixture
def run(finished: Path) -> Path:
    """The run, as the test before it found it."""
    kept = finished / "kept"
    if not kept.exists():
        shutil.copytree(finished / "run", kept / "run")
        shutil.copytree(finished / "base", kept / "base")
    for name in ("run", "base"):
        shutil.rmtree(finished / name)
        shutil.copytree(kept / name, finished / name)
    return finished / "run"


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "file, used",
    [
        ("direction/direction.safetensors", "load_direction"),
        ("direction/direction.json", "load_teacher"),
        ("tokens/safety_tokens.json", "load_tokens"),
        ("adapter/adapter_model.safetensors", "student"),
        ("adapter/adapter_config.json", "student"),
    ],
)
def test_a_damaged_output_is_not_used(run, file, used):
    flip_a_bit(run / file)
    artifacts = RunArtifacts(RunDirectory.load(run))
    folders = r"adapter and .*train" if used == "student" else file.partition("/")[0]
    with pytest.raises(InputError, match=rf"{file} was damaged .* delete .*{folders} and run"):
        getattr(artifacts, used) if used == "student" else getattr(artifacts, used)()


@pytest.mark.parametrize("name", ["base", "teacher", "aligned"])
def test_a_base_that_changed_is_not_used(run, name):
    weights = run.parent / "base" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] += 1
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(InputError, match=r"no longer the model .* its hash is \w+, and the run's"):
        load_variants(find_target(str(run)), [name])


def test_what_did_not_change_is_used(run):
    assert [v.name for v in load_variants(find_target(str(run)), ["base", "aligned"])] == [
        "base",
        "aligned",
    ]


def test_what_models_say_is_private(run):
    private = {"report.html", "report/measurements.json"}
    private |= {str(f.relative_to(run)) for f in (run / "eval").rglob("*.jsonl")}
    found = {
        str(file.relative_to(run))
        for file in run.rglob("*")
        if file.is_file()
        and file.suffix != ".safetensors"  # the library's own choice
        and file.stat().st_mode & 0o077 == 0
    }
    assert any("samples" in name for name in private)
    assert found == private


def test_conversations_are_rendered_before_the_weights_are_read(run, monkeypatch):
    monkeypatch.setattr("safesteer.runs.artifacts.load_model", None)
    kept = run.parent / "base" / "chat_template.jinja"
    refusing = "{% if messages | length > 1 %}{{ raise_exception('One turn') }}{% endif %}"
    settings = {"model": {"chat_template": str(run.parent / "refusing.jinja")}}
    (run.parent / "refusing.jinja").write_text(refusing + kept.read_text("utf-8"), "utf-8")
    turn = {"role": "user", "content": "Hello."}
    for name in (run, run.parent / "base"):
        target = find_target(str(name), sections=settings)
        with pytest.raises(InputError, match=r"cannot render .*One turn"):
            load_variants(target, ["base"], conversations=[[turn], [turn] * 3])


def test_weights_are_hashed_once_in_a_process(tiny_model_folder, tmp_path, monkeypatch):
    """By the check of the outputs, and for the identity of the model that is loaded."""
    base = ModelSettings(id=str(tiny_model_folder))
    with RunDirectory.open(
        tmp_path / "run", settings=Settings(model=base), model=fingerprint(base)
    ) as run:
        shutil.copytree(tiny_model_folder, run.path / "model")
        with run.stage("train", {}) as stage:
            stage.add_output("model")
    hashed = []
    monkeypatch.setattr(files, "_LARGE", 0)
    real = files._sha256
    monkeypatch.setattr(files, "_sha256", lambda path: hashed.append(path) or real(path))
    files._sha256_of_version.cache_clear()
    assert RunArtifacts(RunDirectory.load(run.path)).student is not None
    weights = [path for path in map(str, hashed) if path.endswith(".safetensors")]
    assert weights.count(str(run.path / "model" / "model.safetensors")) == 1
    assert len(weights) == len(set(weights))
