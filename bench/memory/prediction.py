"""Predicted against measured peak memory of every stage, for models of three sizes.

    python -m bench.memory prediction [--models 25M,135M,360M] [--stages "direction;train"]
        [--parts]

The models are a Llama of about 25 million parameters and one of about 360 million with random
weights, written here with the tokenizer of the built-in model, and the built-in model (135
million). Each stage of each model is a process of its own, forked from one that has imported the
libraries and holds no model. It loads the model in bfloat16 and runs the functions of the stage on
a few prompts, the longest ones, in batches of the real shape. Measured is the largest resident
memory of the process (on CUDA what torch allocated), less the constant that the same stage takes
for a model of two blocks of width 64 beyond its own prediction: interpreter and libraries, which
are the same for every model. Prints that constant, the rest, the prediction, and their ratio.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import GenerationConfig

from bench.command_line import names
from bench.inputs import (
    builtin_tokenizer,
    harmful_prompts,
    plain_training,
    random_direction,
    random_llama,
)
from bench.peak_memory import PeakMemory
from bench.tables import table_head, table_row
from safesteer.cli.silence import silence_libraries
from safesteer.config.settings import ModelSettings, Settings
from safesteer.direction.activations import answer_means, prompt_means
from safesteer.direction.behavior import observe
from safesteer.direction.candidates import Candidate, score_candidates
from safesteer.direction.refusal_tokens import refusal_first_tokens
from safesteer.direction.vector import Direction
from safesteer.distill.lora import with_lora
from safesteer.distill.plan import TrainingPrompts
from safesteer.distill.train import train as distill
from safesteer.evaluate.drift import measure_drift
from safesteer.inference.variant import ModelVariant
from safesteer.memory.shape import Shape, gguf_file
from safesteer.memory.stages import Lengths, Placement, predict
from safesteer.models.generate import Decoding
from safesteer.models.load import load_model
from safesteer.safety_tokens import select_safety_tokens
from safesteer.teacher import Teacher, make_teacher

BUILTIN = "smollm2-135m"
SMALLEST = "none"
# Width, intermediate width, blocks, heads, heads of keys.
RANDOM = {
    SMALLEST: (64, 128, 2, 2, 1),
    "25M": (256, 1024, 12, 4, 4),
    "360M": (960, 2560, 32, 15, 5),
}
MODELS = ("25M", "135M", "360M")
TRAIN: dict[str, dict[str, Any]] = {
    "train": {},
    "train, first_layer": {"lora": {"target_modules": ["q_proj", "down_proj"]}},
    "train, checkpointing": {"gradient_checkpointing": True},
    "train, full": {"method": "full", "per_device_train_batch_size": 4},
}
STAGES = ("load", "direction", "tokens", *TRAIN, "evaluate")


def settings_for(stage: str, layers: int) -> Settings:
    """Settings of a run's shape with little to do."""
    changes = dict(TRAIN.get(stage, {}))
    if "lora" in changes:
        changes["lora"] = {**changes["lora"], "first_layer": layers // 3}
    train = plain_training(
        prompts_per_step=16, num_prompts=100, max_steps=2, max_completion_length=64, **changes
    )
    tried = {"layers": [layers // 3, layers // 2], "train_prompts": 32}
    return Settings.model_validate(
        {
            "model": {"dtype": "bfloat16"},
            "direction": {"advanced": tried},
            "teacher": {"strength": 1.0, "temperature": 1.0},
            "tokens": {"num_generations": 1, "horizon": 8},
            "train": train.model_dump(),
            "evaluate": {"max_new_tokens": 24},
        }
    )


def make_models(folder: Path, wanted: list[str]) -> dict[str, str]:
    """{name: folder or id} of these models; those with random weights are written to `folder`."""
    found = {"135M": BUILTIN}
    tokenizer = builtin_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for name, size in RANDOM.items():
        if name in wanted:
            model = random_llama(size, len(tokenizer), **ends).to(torch.bfloat16)
            # Answers of random weights reach the cap, as long answers do.
            model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
            found[name] = str(folder / name)
    return found


def measure(model_id: str, stage: str, answer: Any) -> None:
    """Run the stage in this process and put {"measured", "predicted", "parts"} into `answer`."""
    torch.set_num_threads(max(1, psutil.cpu_count(logical=False) or 1))
    silence_libraries(debug=False)
    begin = 0 if torch.cuda.is_available() else psutil.Process().memory_info().rss
    peak = PeakMemory()
    with peak:
        model = load_model(ModelSettings(id=model_id, dtype="bfloat16"))
        for weight in model.model.parameters():
            weight.max()  # safetensors maps the file, whose pages load when they are read
    if stage != "load":
        settings = settings_for(stage, model.layers)
        prompts = longest_prompts(model)
        before = torch.cuda.memory_allocated() if begin == 0 else psutil.Process().memory_info().rss
        with peak:
            RUN[stage.partition(",")[0]](model, settings, prompts)
        peak.bytes += before - begin
        lengths = lengths_of(model, settings, prompts)
    else:
        settings, lengths = Settings(), Lengths(1, 1)
    device = model.model.device.type
    file = gguf_file(ModelSettings(id=model_id))
    place = Placement(device, 2, gguf=file.stat().st_size if file else 0)
    predicted = predict(Shape.of(model.model), settings, lengths, place)[stage.partition(",")[0]]
    answer.put(
        {
            "measured": peak.bytes,
            "predicted": predicted.bytes,
            "parts": {**predicted.parts, "measured: unused, in malloc": peak.unused},
        }
    )


def longest_prompts(model: Any, count: int = 64) -> list[Any]:
    """The harmful prompts that are longest for this tokenizer."""
    return sorted(harmful_prompts(), key=lambda messages: -len(model.chat.ids(messages)))[:count]


def teacher_for(model: Any, settings: Settings) -> Any:
    """A teacher that reads refusals and is steered at the middle layer by a random direction."""
    return make_teacher(settings.teacher, random_direction(model, size=0.01))


def lengths_of(model: Any, settings: Settings, prompts: list[Any]) -> Lengths:
    """Lengths of the prompts that the stages were given."""
    teacher = teacher_for(model, settings)
    return Lengths.of(
        [model.chat.ids(messages) for messages in prompts],
        [model.chat.ids(teacher.messages(messages)) for messages in prompts],
    )


def direction(model: Any, settings: Settings, prompts: list[Any]) -> None:
    """Means, scores of candidates that all pass, answers under steering."""
    passing = {"max_kl": 1e9, "min_addition_score": -1e9}
    advanced = settings.direction.advanced.model_copy(update=passing)
    chosen = settings.direction.model_copy(update={"advanced": advanced})
    positions = len(model.chat.post_instruction_ids())
    means = prompt_means(model, prompts[:32], positions)[0].float()
    answer_means(model, prompts[:32], advanced.refusing_openings[:1])
    layers = advanced.layers or []
    candidates = [Candidate(Direction(means[-1, layer], layer)) for layer in layers]
    some = prompts[: advanced.validation_prompts]
    score_candidates(model, candidates, some, some, refusal_first_tokens(model.chat), chosen)
    observe(model, Direction(means[-1, layers[0]], layers[0]), prompts[:16])


def tokens(model: Any, settings: Settings, prompts: list[Any]) -> None:
    """The whole stage, one sample of each prompt."""
    chosen = settings.tokens
    teacher = teacher_for(model, settings)
    select_safety_tokens(model, teacher, prompts[: chosen.advanced.num_prompts], chosen)


def train(model: Any, settings: Settings, prompts: list[Any]) -> None:
    """Two steps: the optimizer has its moments after the first."""
    full = settings.train.method == "full"
    student, base = model, None
    if full:  # as the pipeline does: the base stays, the student is loaded beside it
        student = load_model(ModelSettings(id=model.id), for_full_training=True)
        base = model.model
    with tempfile.TemporaryDirectory() as folder:
        teacher = teacher_for(model, settings)
        s = list(range(100, 300))
        distill(
            student,
            teacher,
            s,
            TrainingPrompts(prompts),
            settings.train,
            output=folder,
            base_model=base,
        )


def evaluate(model: Any, settings: Settings, prompts: list[Any]) -> None:
    """Answers of base and teacher, and drift of an adapter without training."""
    new = settings.evaluate.max_new_tokens
    student = with_lora(model.model, settings.train, 0).eval()
    for teacher in (Teacher(), teacher_for(model, settings)):
        ModelVariant("base", model, student, teacher).generate(prompts, Decoding(new))
    measure_drift(model, student, prompts[:32], max_new_tokens=new)


RUN: dict[str, Callable[[Any, Settings, list[Any]], None]] = {
    "direction": direction,
    "tokens": tokens,
    "train": train,
    "evaluate": evaluate,
}


def in_a_fork(context: Any, model: str, stage: str) -> dict[str, Any]:
    """What `measure` sends from a process that has imported the libraries and holds no model.

    Raises:
        SystemExit: the process ended without an answer.
    """
    answer = context.Queue()
    process = context.Process(target=measure, args=(model, stage, answer))
    process.start()
    found = None
    while found is None and (process.is_alive() or not answer.empty()):
        with suppress(Exception):
            found = answer.get(timeout=1)
    process.join()
    if found is None:
        raise SystemExit(f"{model}, {stage}: the process ended with {process.exitcode}")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--stages", default=";".join(STAGES), help="separated by semicolons")
    parser.add_argument("--parts", action="store_true", help="also print the prediction's parts")


def run(arguments: argparse.Namespace) -> None:
    """Print a row per stage and model."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["safesteer.pipeline.stages", "trl", "peft", "transformers.models.llama.modeling_llama"]
    )
    chosen = names(arguments.models)
    with tempfile.TemporaryDirectory() as folder:
        models = make_models(Path(folder), [SMALLEST, *chosen])
        columns = ("constant", "measured beyond it", "predicted", "predicted / measured")
        print(table_head("model", "stage", *columns))
        for stage in arguments.stages.split(";"):
            least = in_a_fork(context, models[SMALLEST], stage)
            constant = least["measured"] - least["predicted"]
            for name in chosen:
                found = in_a_fork(context, models[name], stage)
                beyond, predicted = found["measured"] - constant, found["predicted"]
                cells = [f"{value / 1e6:,.0f} MB" for value in (constant, beyond, predicted)]
                print(table_row(name, stage, *cells, f"{predicted / beyond:.2f}"), flush=True)
                if arguments.parts:
                    print({k: round(v / 1e6) for k, v in found["parts"].items()}, flush=True)
