import errno
import json
import os
from pathlib import Path

import pytest

from safesteer.config.settings import Settings
from safesteer.errors import InputError, SafeSteerError
from safesteer.runs.directory import RunDirectory

MODEL = {"id": "tiny", "revision": None, "sha256": "1" * 64}


def open_at(path: Path, fresh: bool = False) -> RunDirectory:
    return RunDirectory.open(path, settings=Settings(), model=MODEL, fresh=fresh)


def test_a_new_run_says_what_it_is(tmp_path, open_run):
    run = open_run()
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert manifest["stages"] == {}
    assert manifest["model"] == MODEL
    assert {"python", "torch", "transformers"} <= manifest["versions"].keys()
    assert {"platform", "cpu", "cores", "memory_bytes", "gpus"} == manifest["hardware"].keys()
    assert run.manifest == manifest
    assert run.path == tmp_path / "run"


def test_settings_come_back_from_config_yaml(tmp_path, open_run):
    settings = Settings(seed=7)
    settings.train.learning_rate = 3e-7
    with RunDirectory.open(tmp_path / "run", settings=settings, model=MODEL):
        pass
    assert RunDirectory.load(tmp_path / "run").settings == settings
    open_run()
    assert RunDirectory.load(tmp_path / "run").settings == Settings()


def test_an_empty_folder_becomes_a_run(tmp_path):
    open_at(tmp_path).close()
    assert RunDirectory.is_run(tmp_path)


def test_reopening_keeps_the_stages(open_run):
    with open_run().stage("direction", {"layer": 1}):
        pass
    assert open_run().stage("direction", {"layer": 1}).finished


def test_another_model_is_refused(tmp_path, open_run):
    open_run().close()
    before = (tmp_path / "run" / "manifest.json").read_text()
    with pytest.raises(InputError) as caught:
        open_run(id="other", sha256="2" * 64)
    assert str(caught.value) == (
        f"{tmp_path / 'run'} holds a run of another model, tiny. Try: another --output-dir, or"
        " --fresh"
    )
    assert (tmp_path / "run" / "manifest.json").read_text() == before
    # The refused attempt holds no lock, and --fresh is a way out.
    assert open_run(fresh=True, id="other", sha256="2" * 64).manifest["model"]["id"] == "other"


def test_the_same_weights_under_another_name_are_the_same_model(open_run):
    open_run().close()
    assert open_run(id="./tiny").manifest["model"]["id"] == "./tiny"


WRITTEN = (
    "direction/direction.json", "tokens/safety_tokens.json", "train/metrics.jsonl",
    "train/checkpoint-1/any/file", "train/runs/today/events", "adapter/adapter_model.safetensors",
    "adapter/tokenizer.json", "model/model-00001-of-00002.safetensors", "model.partial/README.md",
    "eval/base.json", "eval/samples/base-harmful.jsonl", "eval/cache/1.jsonl",
    "report/measurements.json", "report.html", "README.md", "eval/.safesteer-1.tmp",
    "train/kfac/matrices.safetensors", "train/.DS_Store",
)  # fmt: skip


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_fresh_deletes_what_a_run_writes_and_nothing_else(open_run):
    run = open_run()
    with run.stage("train", {}) as stage:
        stage.add_output(touch(run.path / "model" / "modeling_own.py"))
    for name in (*WRITTEN, "mine/file", "notes.txt"):
        touch(run.path / name)
    run = open_run(fresh=True)
    left = {entry.name for entry in run.path.iterdir()}
    assert left == {".lock", "manifest.json", "config.yaml", "mine", "notes.txt"}
    assert (run.path / "mine" / "file").exists()
    assert run.manifest["stages"] == {}


@pytest.mark.parametrize(
    "name",
    [
        "train/data.csv", "train/checkpoint-mine", "model/train.py", "adapter/notes.md",
        "eval/samples/mine.csv", "eval/deep/mine.txt", "report/summary.docx", "tokens/other.json",
        "direction/direction.json.bak",
    ],
)  # fmt: skip
def test_fresh_stops_at_what_no_run_has_written(open_run, name):
    run = open_run()
    for other in (*WRITTEN, name):
        touch(run.path / other)
    before = sorted(run.path.rglob("*"))
    with pytest.raises(InputError, match=f"no run has written.*: {name}. Try: move them away"):
        open_run(fresh=True)
    assert sorted(run.path.rglob("*")) == before


@pytest.mark.parametrize("name", ["model", "train/checkpoint-1", "report.html", "eval/base.json"])
def test_fresh_follows_no_symbolic_link(tmp_path, open_run, name):
    run = open_run()
    kept = touch(tmp_path / "elsewhere" / "keep")
    (run.path / name).parent.mkdir(exist_ok=True)
    (run.path / name).symlink_to(kept.parent if "." not in name else kept)
    with pytest.raises(InputError, match=f"no run has written.*: {name}"):
        open_run(fresh=True)
    assert kept.exists() and (run.path / name).is_symlink()


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("content", [None, '{"name": "an app"}'])
def test_a_foreign_folder_is_refused_and_left_alone(tmp_path, fresh, content):
    (tmp_path / "model").mkdir()
    (tmp_path / "README.md").write_text("mine")
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(InputError, match="Try: another --output-dir"):
        open_at(tmp_path, fresh)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"is a file\. Try: a folder"):
        open_at(tmp_path / "file")
    with pytest.raises(InputError, match=r"cannot use .*file/run"):
        open_at(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EACCES, InputError), (errno.ENOSPC, SafeSteerError)]
)
def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch, number, kind):
    def fail(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(SafeSteerError, match=r"/run") as caught:
        open_at(tmp_path / "run")
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"schema": 1, "stages": {"dir', "is not valid JSON"),
        ('{"schema": 2, "stages": {}}', "has schema 2"),
        ('{"schema": 1, "stages": {}}', "was damaged or changed"),
        ("[]", "is not a manifest of safesteer"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, open_run, content, words):
    open_run().close()
    path = tmp_path / "run" / "manifest.json"
    path.write_text(content)
    for attempt in (open_run, lambda: RunDirectory.load(path.parent)):
        with pytest.raises(InputError) as caught:
            attempt()
        assert str(caught.value).startswith(f"{path} {words}")
    assert path.read_text() == content


def test_a_damaged_stage_in_the_manifest_is_named(tmp_path, open_run):
    with open_run().stage("direction", {}):
        pass
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["stages"]["direction"]["seconds"] = "long"
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"at 'stages\.direction\.seconds'"):
        open_run()


@pytest.mark.parametrize("content", ['{"schema": 1, "st', "", '{"schema": 1, "stages": {}}', "[]"])
def test_fresh_deletes_nothing_without_a_readable_manifest(open_run, content):
    run = open_run()
    touch(run.path / "train" / "metrics.jsonl")
    (run.path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match="Try: another --output-dir"):
        open_run(fresh=True)
    assert (run.path / "train" / "metrics.jsonl").exists()


def test_fresh_replaces_a_run_of_another_version(open_run):
    run = open_run()
    touch(run.path / "train" / "metrics.jsonl")
    (run.path / "manifest.json").write_text('{"schema": 0, "stages": {}}')
    assert open_run(fresh=True).manifest["schema"] == 1
    assert not (run.path / "train").exists()


def test_load_refuses_what_is_no_run(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        RunDirectory.load(tmp_path / "none")
    with pytest.raises(InputError, match="is not a run of safesteer"):
        RunDirectory.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a run of safesteer"):
        RunDirectory.load(tmp_path / "file")


def test_load_names_a_missing_config(tmp_path, open_run):
    open_run()
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"config\.yaml"):
        RunDirectory.load(tmp_path / "run")


def test_a_loaded_run_can_be_asked_but_not_changed(tmp_path, open_run):
    run = open_run()
    with run.stage("direction", {"layer": 1}):
        pass
    loaded = RunDirectory.load(tmp_path / "run")  # although it is locked
    assert loaded.stage("direction", {"layer": 1}).finished
    with pytest.raises(RuntimeError, match="not open for writing"), loaded.stage("tokens", {}):
        pass
    run.close()
    with pytest.raises(RuntimeError, match="not open for writing"):
        run.save_manifest()


def test_half_written_files_of_a_killed_process_are_removed(tmp_path, open_run):
    path = tmp_path / "run"
    path.mkdir()
    (path / ".safesteer-1.tmp").touch()
    open_run()  # such a leftover does not make a folder foreign
    (path / "direction").mkdir()
    (path / "direction" / ".safesteer-2.tmp").touch()
    run = open_run()
    assert not list(run.path.rglob("*.tmp"))


def test_summary_and_hashes_of_outputs(open_run):
    run = open_run()
    with run.stage("direction", {}) as stage:
        (run.path / "direction").mkdir()
        (run.path / "direction" / "a.json").write_text("{}")
        stage.add_output("direction/a.json")
    with pytest.raises(ZeroDivisionError), run.stage("tokens", {}):
        _ = 1 / 0
    (name, seconds, peak), second = run.summary()
    assert (name, second.stage) == ("direction", "tokens")
    assert 0 <= seconds < 10
    assert peak > 1 << 20
    assert list(run.output_hashes("direction")) == ["direction/a.json"]
    assert run.output_hashes("tokens") == {}
    assert run.output_hashes("train") == {}
