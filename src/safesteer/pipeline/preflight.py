"""The checks before a run, which need no model, and the opening of its folder.

`safesteer.pipeline.align.run_stages` is the only caller of `open_pipeline`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safesteer import distributed
from safesteer.config.rules import PREFILLS_AND_THOUGHTS
from safesteer.config.settings import Settings
from safesteer.distill.plan import check_lengths, completions_per_process
from safesteer.distill.trackers import check_trackers
from safesteer.distill.vllm import check_model, check_rollouts
from safesteer.errors import InputError
from safesteer.evaluate.benchmarks.sources import Loaded
from safesteer.evaluate.benchmarks.table import find_benchmark
from safesteer.events import Reporter
from safesteer.judges.registry import parse_judge
from safesteer.memory.shape import Shape
from safesteer.models.chat import ChatRenderer, Message
from safesteer.models.devices import check_device_map, pick_device, pick_dtype
from safesteer.models.files import fingerprint, locate
from safesteer.models.quantization import check_quantization
from safesteer.models.tokenizer import load_chat
from safesteer.pipeline.model_rules import check_model_rules, read_model
from safesteer.pipeline.repairs import training_prompts
from safesteer.pipeline.stages import Pipeline, plan_suite
from safesteer.prompts import PromptSet
from safesteer.prompts.overlap import harmful_too
from safesteer.runs.directory import RunDirectory
from safesteer.runs.manifest import changed_keys, read_manifest
from safesteer.runs.stage import STAGES
from safesteer.runs.target import Target
from safesteer.teacher import make_teacher

# AdamW keeps two float32 numbers beside each float32 weight; a checkpoint holds all three, and a
# third checkpoint is written before the first of two is deleted.
_CHECKPOINT_BYTES = 12
_CHECKPOINTS = 3
_SMALL_FILES = 100e6  # answers, metrics, report


@contextmanager
def open_pipeline(
    target: Target,
    prompts: Mapping[str, PromptSet],
    *,
    stages: Sequence[str] = STAGES,
    fresh: bool = False,
    reporter: Reporter | None = None,
) -> Iterator[Pipeline]:
    """Check what the pending ones of `stages` need, then open the run.

    A wrong input leaves no new folder behind, and `fresh` deletes nothing before the checks.
    """
    path, settings = target.path, target.settings
    check_names(settings)
    earlier = None
    if RunDirectory.is_run(path) and not fresh:
        unopened = RunDirectory(path, settings, read_manifest(path), None)
        earlier = Pipeline(unopened, prompts=prompts)
    if earlier is None or any(map(earlier.must_run, stages)):
        pick_device(settings.model.device)
    trains = "train" in stages and (earlier is None or earlier.must_run("train"))
    if trains:
        check_trackers(settings.report_to)
        if settings.train.wrong_refusals == "repair":
            harmful_too(prompts)
        if settings.train.rollouts == "vllm":
            check_rollouts(settings.train, pick_device(settings.model.device))
            check_model(settings.model)
    shape = None
    searches = "direction" in stages and (earlier is None or earlier.must_run("direction"))
    named = settings.direction.advanced.layers is not None  # reading a GGUF file takes seconds
    if distributed.is_main() and (trains or (searches and named)):
        with distributed.single_process():
            if (found := read_model(settings)) is not None:
                shape = found[1]
                check_model_rules(settings, *found, trains=trains)
    suite = None
    if "evaluate" in stages and distributed.is_main():
        with distributed.single_process():
            suite = plan_suite(path, settings, prompts)
            if earlier is not None:
                earlier.suite = suite
    chat = None
    if distributed.is_main() and (earlier is None or any(map(earlier.must_run, stages))):
        with distributed.single_process():
            chat = load_chat(settings.model) if earlier is None else earlier.chat
            check_conversations(chat, settings, prompts, suite.benchmarks if suite else ())
            if trains:
                check_lengths(settings.train, training_prompts(settings.train, prompts), chat)
            if suite is not None and (earlier is None or earlier.must_run("evaluate")):
                suite.prepare()
    with open_run(path, settings, fresh=fresh, date=chat.date if chat else None) as run:
        if trains and shape is not None:
            check_disk(run.path, settings, shape)
        pipeline = Pipeline(run, reporter, prompts=prompts)
        if chat is not None:
            pipeline.chat = chat
        if suite is not None:
            pipeline.suite = suite
        yield pipeline


def open_run(
    path: str | Path, settings: Settings, *, fresh: bool = False, date: str | None = None
) -> RunDirectory:
    """Open the run directory: for writing on the main process, for reading on the others.

    A new run keeps the `date` that its chat template reads, whenever it is resumed.
    """
    check_devices(settings)
    run = _open_to_write(path, settings, fresh, date) if distributed.is_main() else None
    own = {"folder": os.path.realpath(path), "settings": settings.model_dump(mode="json")}
    if different := changed_keys(distributed.on_main(lambda: own), own):
        raise InputError(
            f"process {distributed.rank()} was given another {', '.join(different[:4])} than"
            " process 0. Try: the same command for all processes"
        )
    if run is None:
        if not RunDirectory.is_run(path):
            raise InputError(
                f"{path} is not shared by all processes. Try: a folder that every machine sees"
            )
        run = RunDirectory.load(path)
    try:
        distributed.barrier()
    except BaseException:
        run.close()
        raise
    return run


def check_conversations(
    chat: ChatRenderer,
    settings: Settings,
    prompts: Mapping[str, PromptSet],
    benchmarks: Sequence[Loaded] = (),
) -> None:
    """Raise InputError for a kind of conversation in this run that the template cannot render.

    One of each kind is rendered, as the student reads it and as the teacher does.
    """
    if settings.train.prefill_share and chat.thinks:
        raise InputError(PREFILLS_AND_THOUGHTS.message)
    asked = [
        (f"prompts.{name}", prompt.messages, "")
        for name, found in prompts.items()
        for prompt in (*found.train, *found.validation, *found.test)
    ]
    asked += [
        (f"benchmark {loaded.name}", item.prompt.messages, item.prefill)
        for loaded in benchmarks
        for item in loaded.items
    ]
    if settings.train.prefill_share:
        asked += [("train.prefill_share", asked[0][1], settings.train.advanced.prefills[0])]
    teacher, context = make_teacher(settings.teacher, None), settings.teacher.context
    kinds: dict[Any, tuple[str, Sequence[Message], str]] = {}
    for row in asked:
        kinds.setdefault((*(message["role"] for message in row[1]), row[2]), row)
    for where, messages, prefill in kinds.values():
        for what, read in (
            (where, messages),
            (f"teacher.context = '{context}' with {where}", teacher.messages(messages, prefill)),
        ):
            try:
                chat.ids(read, prefill)
            except InputError as error:
                raise InputError(f"{what}: {error}") from None


def check_devices(settings: Settings) -> None:
    """Raise InputError for settings that these devices and processes cannot work with."""
    processes = distributed.world_size()
    completions_per_process(settings.train, processes)
    check_device_map(settings.model)
    if processes > 1 and ":" in settings.model.device:
        raise InputError(
            f"model.device = '{settings.model.device}' names one device for {processes} processes."
            " Try: model.device=auto"
        )


def _open_to_write(
    path: str | Path, settings: Settings, fresh: bool, date: str | None
) -> RunDirectory:
    with distributed.single_process():
        full = settings.train.method == "full"
        quantized = check_quantization(settings.model, *locate(settings.model), full=full)
    if quantized != "none" and distributed.layout() != "replicated":
        raise InputError(
            f"{settings.model.id} in {quantized} cannot be spread over processes. Try: copies of"
            " it (ddp), or a single process"
        )
    with distributed.single_process():
        model = fingerprint(settings.model)
        run = RunDirectory.open(path, settings=settings, model=model, fresh=fresh)
        # What dtype `auto` means is measured once: every later start of the run uses the same.
        if settings.model.dtype == "auto" and "dtype" not in run.manifest["model"]:
            dtype = pick_dtype("auto", pick_device(settings.model.device))
            run.manifest["model"]["dtype"] = str(dtype).removeprefix("torch.")
            run.save_manifest()
        if date and "date" not in run.manifest["model"]:
            run.manifest["model"]["date"] = date
            run.save_manifest()
    return run


def check_names(settings: Settings) -> None:
    """Raise InputError for a benchmark or a judge that does not exist, also where none is asked."""
    for name in (*settings.evaluate.benchmarks, *settings.evaluate.advanced.sources):
        find_benchmark(name)
    for name in settings.evaluate.judges:
        parse_judge(name)


def check_disk(path: Path, settings: Settings, shape: Shape) -> None:
    """Raise InputError where the disk does not hold the checkpoints of the training."""
    full = settings.train.method == "full"
    trained = shape.parameters if full else shape.lora_parameters(settings.train.lora)
    needed = trained * (_CHECKPOINTS * _CHECKPOINT_BYTES + 4) + _SMALL_FILES
    free = shutil.disk_usage(path).free
    if free < needed:
        raise InputError(
            f"{path}: the disk has {free / 1e9:.1f} GB free, and the training needs about"
            f" {needed / 1e9:.1f} GB for checkpoints and results. Try: another --output-dir"
            + (", or train.method=lora" if full else "")
        )
