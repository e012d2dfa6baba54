"""Who does what where several processes work on a run, and one model over several devices."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import resources

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from tiny import plain_training
from transformers import AutoModelForCausalLM

from safesteer import distributed
from safesteer.cli.main import main
from safesteer.config.load import accelerate_names, load_settings, recipe_text
from safesteer.config.settings import ModelSettings
from safesteer.direction.vector import Direction
from safesteer.distill.checkpoints import prepare_resume
from safesteer.distill.plan import TrainingPrompts, completions_per_process, for_processes
from safesteer.distill.train import train as distil
from safesteer.errors import InputError
from safesteer.files import write_json
from safesteer.models.load import _check_placement, describe, load_model
from safesteer.pipeline.preflight import open_run
from safesteer.teacher import Teacher

LAUNCHED = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}
PLACE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def _alone():
    with distributed.single_process():
        return dict(os.environ)


@pytest.fixture
def second_of_two(monkeypatch):
    for name, value in {**LAUNCHED, **PLACE}.items():
        monkeypatch.setenv(name, value)


def test_a_process_without_a_launcher_is_alone_and_main(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # a number that something else has set
    assert (distributed.world_size(), distributed.rank(), distributed.local_rank()) == (1, 0, 0)
    assert (
        distributed.is_main()
        and distributed.layout() == "replicated"
        and distributed.first_to_fail()
    )
    assert distributed.on_main(lambda: 7) == 7
    distributed.barrier()


def test_what_a_process_does_alone_knows_of_no_other(second_of_two):
    assert (distributed.world_size(), distributed.rank(), distributed.local_rank()) == (2, 1, 1)
    assert distributed.layout() == "fsdp" and not distributed.is_main()
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError), distributed.single_process():
        assert (
            distributed.world_size() == 1
            and distributed.is_main()
            and distributed.layout() == "replicated"
        )
        assert not (LAUNCHED.keys() | PLACE.keys()) & os.environ.keys()
        with distributed.single_process():
            raise ZeroDivisionError
    assert dict(os.environ) == before


def test_one_of_several_ends_without_the_interpreter_being_taken_down(second_of_two):
    """Which aborts now and then, when threads of a process group are left; see `program`."""
    lines = (
        "import atexit, os, sys",
        "from safesteer.cli.main import program",
        "class Left: __del__ = lambda self, say=os.write: say(2, b'taken down')",
        "left, sys.argv = Left(), ['safesteer', '--version']",
        "leave = sys.exit",
        "sys.exit = lambda code: (print('code', code), leave(code))",
        "atexit.register(print, 'said at exit')",
        "program()",
    )
    for environment, error in ((dict(os.environ), ""), (_alone(), "taken down")):
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        assert done.stdout.splitlines()[-2:] == ["code 0", "said at exit"]
        assert done.stderr == error


def test_a_command_that_does_not_train_is_the_main_process_s(second_of_two, capsys):
    for command in (["--version"], ["recipes"], ["compare", "nowhere"]):
        assert main(command) == 0
    assert capsys.readouterr() == ("", "")


def test_an_error_in_the_work_itself_is_not_taken_for_a_lost_process(second_of_two):
    with pytest.raises(RuntimeError, match="sizes"), distributed.joint_work():
        raise RuntimeError("sizes do not match")
    lost = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"
    with (
        pytest.raises(distributed.SafeSteerError, match="another process"),
        distributed.joint_work(),
    ):
        raise RuntimeError(lost)


@pytest.mark.parametrize("processes", [1, 2, 3, 6])
def test_an_update_over_all_processes_is_the_plans(processes):
    """Each process's slice of a window holds, update after update, an even share of each."""
    per_update, window = 6, 12
    rows = [(update, number) for update in range(6) for number in range(per_update)]
    read = for_processes(rows, window, processes)
    share = per_update // processes
    slices = [read[start : start + window // processes] for start in range(0, 36, 12 // processes)]
    for update in range(6):
        at = update % 2 * share
        mine = [
            slices[update // 2 * processes + process][at : at + share]
            for process in range(processes)
        ]
        dealt = sorted(row for part in mine for row in part)
        assert dealt == [(update, number) for number in range(per_update)]
        # Harmful rows come first in an update and anchors last: all have some of the first.
        assert [part[0][1] for part in mine] == list(range(processes))


def test_completions_that_cannot_be_shared_evenly(tmp_path):
    settings = plain_training(prompts_per_step=2, num_generations=4)
    assert [completions_per_process(settings, count) for count in (1, 2, 8)] == [8, 4, 1]
    with pytest.raises(InputError, match=r"= 8 completions .* evenly by 3 processes"):
        completions_per_process(settings, 3)


def test_processes_have_the_same_settings_and_folder(second_of_two, tmp_path, monkeypatch):
    """The main process's word is compared with what this one was given."""
    settings = load_settings()
    told = {"folder": str(tmp_path / "run"), "settings": settings.model_dump(mode="json")}
    monkeypatch.setattr(distributed, "on_main", lambda work: told)
    with pytest.raises(InputError, match=r"process 1 was given another folder than process 0"):
        open_run(tmp_path / "other", settings)
    changed = load_settings(train={"learning_rate": 3e-3})
    with pytest.raises(InputError, match=r"another settings\.train\.learning_rate than"):
        open_run(tmp_path / "run", changed)
    with pytest.raises(InputError, match="is not shared by all processes"):
        open_run(tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "sections, says",
    [
        ({"model": {"advanced": {"device_map": "auto"}}}, r"device_map = 'auto' .* 2 processes"),
        ({"model": {"device": "cuda:1"}}, r"cuda:1' names one device for 2 processes"),
        (
            {"train": {"prompts_per_step": 1, "num_generations": 3, "anchor_share": 0}},
            "3 completions",
        ),
    ],
)
def test_settings_that_several_processes_cannot_have(sections, says, second_of_two, tmp_path):
    with pytest.raises(InputError, match=says):
        open_run(tmp_path / "run", load_settings(**sections))


def test_a_checkpoint_of_spread_weights_is_refused_by_copies_of_the_model(tmp_path):
    marker = tmp_path / "checkpoint-2" / "complete.json"
    write_json(marker, {"step": 2, "layout": "fsdp"})
    assert prepare_resume(tmp_path, "fsdp", 1) == str(marker.parent)
    with pytest.raises(InputError, match=r"checkpoint-2 holds weights laid out as 'fsdp'"):
        prepare_resume(tmp_path, "replicated", 1)
    write_json(marker, {"step": 2})  # written before layouts were
    assert prepare_resume(tmp_path, "replicated", 1) == str(marker.parent)


def test_fsdp_where_accelerate_has_none_is_refused(tiny_chat_model, user, tmp_path, monkeypatch):
    """On the CPU accelerate would train a copy on each process, and say nothing."""
    monkeypatch.setattr(distributed, "layout", lambda: "fsdp")
    settings = plain_training(max_steps=1, prompts_per_step=1, num_generations=1)
    teacher = Teacher(Direction(torch.ones(32), 1))
    with pytest.raises(InputError, match="FSDP was asked for"):
        prompts = TrainingPrompts([user("Hi")])
        distil(tiny_chat_model, teacher, [10], prompts, settings, output=tmp_path)


def test_a_model_over_all_devices_is_the_model(tiny_model_folder, monkeypatch):
    """transformers is told; with the one device of this machine the weights are the same."""
    told = []
    original = AutoModelForCausalLM.from_pretrained

    def from_pretrained(*where, **how):  # type: ignore[no-untyped-def]
        told.append(how["device_map"])
        return original(*where, **how)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    settings = ModelSettings(
        id=str(tiny_model_folder), dtype="float32", advanced={"device_map": "auto"}
    )
    spread = load_model(settings)
    plain = load_model(ModelSettings(id=str(tiny_model_folder), dtype="float32"))
    assert told == ["auto", None]
    for one, other in zip(spread.model.parameters(), plain.model.parameters(), strict=True):
        assert one.equal(other) and not one.requires_grad
    spread.model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1, "lm_head": 1}
    assert describe(spread)["device"] == "0, 1"
    _check_placement(tiny_model_folder, spread.model)
    spread.model.hf_device_map["lm_head"] = "disk"
    with pytest.raises(InputError, match=r"does not fit on the GPUs.* disk"):
        _check_placement(tiny_model_folder, spread.model)


@pytest.mark.parametrize(
    "copied, says", [({"device": "cpu"}, "one of them alone"), ({"id": "x.gguf"}, "GGUF")]
)
def test_where_a_device_map_cannot_be(copied, says, tiny_model_folder, tmp_path, monkeypatch):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    settings = ModelSettings(id=str(tiny_model_folder), advanced={"device_map": "auto"})
    with pytest.raises(InputError, match=says):
        load_model(settings.model_copy(update=copied))


def test_a_device_map_with_all_weights_is_refused():
    spread = {"advanced": {"device_map": "auto"}}
    with pytest.raises(InputError, match=r"train\.method = 'full' needs a copy"):
        load_settings(model=spread, train={"method": "full"})


@pytest.mark.parametrize("name", accelerate_names())
def test_configs_for_accelerate_are_what_their_names_say(name, tmp_path):
    """accelerate reads each of them, and its head says how to start with it."""
    file = tmp_path / "config.yaml"
    file.write_text(recipe_text(name))
    config = load_config_from_file(str(file))
    kind, devices = name.removeprefix("accelerate/").split("-", 1)
    if kind.isdigit():
        kind, devices = "one", f"{kind}-gpu"
    assert config.num_processes == int(devices.partition("-")[0])
    kinds = {"one": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}
    assert config.distributed_type.value == kinds[kind]
    assert kind != "fsdp2" or config.fsdp_config["fsdp_version"] == 2
    assert kind != "zero3" or config.deepspeed_config["zero_stage"] == 3
    assert f"safesteer recipes show {name}" in file.read_text()
    with pytest.raises(InputError, match="accelerate launch"):
        load_settings(name)


def test_configs_for_accelerate_are_in_the_package():
    folder = resources.files("safesteer.config") / "recipes" / "accelerate"
    assert len(accelerate_names()) == 7 == sum(1 for _ in folder.iterdir())
