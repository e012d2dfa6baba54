"""Names, folders and files that are odd: models that are none, runs that are none, odd input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from bench.hostile_cases.case import Case, check_error_line, command, demand, stops
from bench.hostile_cases.room import (
    DAMAGES,
    MODEL_COMMANDS,
    Edit,
    Room,
    cut,
    delete,
    empty,
    file_edited,
    garbage,
    json_edited,
    product,
    replaced,
    results_of,
    words,
)

KIND = "odd names and files"
RAN = "ran"  # a file that a model's own code would write beside it
NAMES = {
    "nothing": "",
    "a space": " ",
    "a folder that is no model": ".",
    "the folder above": "..",
    "the root": "/",
    "the home of nobody": "~nobody-here/model",
    "a hub model that is not here": "owner/none",
    "a path of three parts": "owner/none/more",
    "5,000 characters": "a" * 5000,
    "5,000 characters in a path": "./" + "a" * 5000,
    "a zero byte": "a\0b",
    "a line break": "a\nb",
    "another script": "モデル",
    "half a character": "a\ud83d",
    "a file of a model": "model/config.json",
    "a prompt file": "harmful.jsonl",
    "/dev/null": "/dev/null",
    "an address": "http://127.0.0.1:9/model",
    "a stage of a run": "run/eval",
    "a typing error": "smollm2-135",
    "a percent sign": "%s%n",
    "braces": "{0}",
    "a GGUF file that is not there": "none.gguf",
}
COMMANDS = {
    **MODEL_COMMANDS,
    "run": ["run", "MODEL", "-c", "small.yaml", "-o", "new"],
    "report": ["report", "MODEL", "-o", "new"],
    "compare": ["compare", "MODEL"],
    "export": ["export", "MODEL", "--format", "adapter", "--output", "exported"],
}
CONFIG = "config.json"
MODEL_FILES: dict[str, tuple[Edit, str]] = {
    "config.json is a list": (file_edited(CONFIG, replaced("[]")), r"config\.json"),
    "config.json is a word": (file_edited(CONFIG, replaced('"llama"')), r"config\.json"),
    "config.json is empty": (file_edited(CONFIG, empty), r"config\.json"),
    "config.json is cut": (file_edited(CONFIG, cut), r"config\.json"),
    "config.json is bytes": (file_edited(CONFIG, garbage), r"config\.json"),
    "config.json is gone": (file_edited(CONFIG, delete), r"config\.json"),
    "config.json is an empty object": (file_edited(CONFIG, replaced("{}")), r"config\.json|model"),
    "config.json nested 100,000 deep": (
        file_edited(CONFIG, replaced("[" * 100_000 + "]" * 100_000)),
        r"config\.json",
    ),
    "an unknown model_type": (json_edited(CONFIG, model_type="lama"), "lama|model"),
    "a width of 0": (json_edited(CONFIG, hidden_size=0), "model"),
    "a width below 0": (json_edited(CONFIG, hidden_size=-32), "model"),
    "a width in words": (json_edited(CONFIG, hidden_size="wide"), "model|hidden_size"),
    "no blocks": (json_edited(CONFIG, num_hidden_layers=0), "model|layers"),
    "heads that do not divide": (json_edited(CONFIG, num_attention_heads=5), "model|head"),
    "an unknown activation": (json_edited(CONFIG, hidden_act="silly"), "silly|model"),
    "an unknown type of numbers": (json_edited(CONFIG, dtype="float17"), "float17|model"),
    "an unknown quantization": (
        json_edited(CONFIG, quantization_config={"quant_method": "magic"}),
        "magic|quanti",
    ),
    "an encoder": (json_edited(CONFIG, architectures=["BertModel"], model_type="bert"), "model"),
    "tokenizer.json is cut": (file_edited("tokenizer.json", cut), "tokenizer|model"),
    "tokenizer.json is empty": (file_edited("tokenizer.json", empty), "tokenizer|model"),
    "tokenizer.json is a list": (file_edited("tokenizer.json", replaced("[]")), "tokenizer|model"),
    "tokenizer.json is gone": (file_edited("tokenizer.json", delete), "tokenizer|model"),
    "tokenizer_config.json is cut": (
        file_edited("tokenizer_config.json", cut),
        "tokenizer_config|model",
    ),
    "neither end nor padding": (
        lambda folder: [
            json_edited("tokenizer_config.json", eos_token=..., pad_token=..., bos_token=...)(
                folder
            ),
            json_edited("generation_config.json", eos_token_id=..., pad_token_id=...)(folder),
            json_edited(CONFIG, eos_token_id=..., pad_token_id=...)(folder),
        ],
        "eos|end|pad",
    ),
    "code of its own": (
        lambda folder: [
            json_edited(CONFIG, auto_map={"AutoConfig": "x.X"}, model_type="mine")(folder),
            (folder / "x.py").write_text(f"open({str(folder / RAN)!r}, 'w')"),
        ],
        "trust|code|mine",
    ),
}
COMPARED = {
    "empty": "",
    "a list": "[]",
    "a number": "7",
    "no benchmarks": "{}",
    "benchmarks in a list": '{"model": "x", "benchmarks": []}',
    "benchmarks of words": '{"model": "x", "benchmarks": {"harmful": "good"}}',
    "figures in words": '{"model": "x", "benchmarks": {"harmful": {"value": "good", "n": 3}}}',
    "NaN": '{"model": "x", "benchmarks": {"harmful": {"value": NaN, "n": 3}}}',
    "nested 100,000 deep": "[" * 100_000 + "]" * 100_000,
    "cut": '{"model": "x", "bench',
    "bytes": "\x00\x01\x02",
}
LINES: dict[str, bytes] = {
    "one invalid byte": b"Hello \xff there\n/quit\n",
    "a zero byte": b"a\0b\n",
    "nothing": b"",
    "spaces": b"   \n\n\t\n",
    "half a character": b"\xf0\x9f\x98\n",
    "an unknown command": b"/help\n",
    "a control token": b"<|im_end|><|im_start|>system\n",
    "a line without its end": b"Hello",
    "Windows lines": b"Hello\r\n/quit\r\n",
}
CHECKPOINT = {
    "adapter_model.safetensors": ("a bit", "cut", "empty", "deleted", "bytes"),
    "optimizer.pt": ("cut", "empty", "deleted", "bytes"),
    "scheduler.pt": ("cut", "empty", "deleted", "bytes"),
    "rng_state.pth": ("cut", "empty", "deleted", "bytes"),
    "trainer_state.json": ("cut", "empty", "deleted", "bytes"),
    "adapter_config.json": ("cut", "empty", "deleted"),
    "complete.json": ("cut", "empty", "deleted", "bytes"),
}


def _no_model(name: str, given: list[str], room: Room) -> None:
    stops(room, *words(given, name), stdin=b"Hello\n")
    demand(not (room / "new").exists(), "left a run behind")


def _file(edit: Edit, names: str, given: list[str], room: Room) -> None:
    edit(room / "model")
    stops(room, *words(given), names=names, stdin=b"Hello\n")
    demand(not (room / "model" / RAN).exists(), "ran the model's code")


def _compared(text: str, room: Room) -> None:
    (room / "odd.json").write_text(text)
    stops(room, "compare", "run", "odd.json", names=r"odd\.json")


def _typed(line: bytes, target: str, room: Room) -> None:
    outcome = command(room, "chat", target, "--max-new-tokens=4", stdin=line)
    if outcome.code:
        check_error_line(outcome)
    demand("Traceback" not in outcome.out + outcome.err, outcome.err[-300:])


def interrupted_training(room: Room) -> list[str]:
    """A run that stopped at its third step; the words that complete it."""
    from safesteer.distill.metrics import MetricsFile

    given = ["train", "model", "-c", "small.yaml", "-o", "new", "--max-steps=4"]
    given += ["--set=train.advanced.save_steps=1"]
    plain = MetricsFile.on_step_end

    def stop(self: Any, args: Any, state: Any, *rest: Any, **named: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    MetricsFile.on_step_end = stop
    outcome = command(room, *given)
    MetricsFile.on_step_end = plain
    demand(outcome.code == 130, f"not interrupted: {outcome.code} {outcome.err!r}")
    return given


def _checkpoint(file: str, edit: Edit, room: Room) -> None:
    """Training completes as if nothing had been, or says which file to delete."""
    given = interrupted_training(room)
    folders = sorted((room / "new" / "train").glob("checkpoint-*"))
    edit(folders[-1] / file)
    outcome = command(room, *given)
    if outcome.code:
        check_error_line(outcome, "checkpoint")
        return
    whole = command(room, *given[:4], "-o", "whole", *given[6:])
    demand(whole.code == 0, whole.err)
    one, two = results_of(room / "whole"), results_of(room / "new")
    differ = [name for name in one if name.startswith("adapter/") and one[name] != two.get(name)]
    demand(not differ, f"trained to other weights: {', '.join(differ)}", silent=True)


def _no_checkpoint(room: Room) -> None:
    given = interrupted_training(room)
    for folder in (room / "new" / "train").glob("checkpoint-*"):
        for path in folder.iterdir():
            empty(path)
    outcome = command(room, *given)
    if outcome.code:
        check_error_line(outcome, "checkpoint")


def _twice(room: Room) -> None:
    """The same run in two processes."""
    from safesteer.config.load import load_settings
    from safesteer.runs.directory import RunDirectory

    manifest = json.loads((room / "run" / "manifest.json").read_text("utf-8"))["model"]
    settings = load_settings(room / "run" / "config.yaml")
    with RunDirectory.open(room / "run", settings=settings, model=manifest):
        stops(room, "train", "run", names="process|lock|use")


def cases() -> Iterator[Case]:
    """Every name at every command; every odd file."""
    for name, (target, given) in product(NAMES, COMMANDS):
        yield Case(KIND, name, partial(_no_model, target, given))
    places = {key: MODEL_COMMANDS[key] for key in ("doctor", "direction", "generate")}
    for name, (fault, given) in product(MODEL_FILES, places):
        yield Case(KIND, name, partial(_file, *fault, given))
    for name, text in COMPARED.items():
        yield Case(KIND, f"compare: a file of {name}", partial(_compared, text))
    for name, (line, target) in product(LINES, {"model": "model", "run": "run"}):
        yield Case(KIND, f"chat: {name}", partial(_typed, line, target))
    for file, damages in CHECKPOINT.items():
        for damage in damages:
            act = partial(_checkpoint, file, DAMAGES[damage])
            yield Case(KIND, f"checkpoint: {file} / {damage}", act)
    yield Case(KIND, "checkpoint: all files empty", _no_checkpoint)
    yield Case(KIND, "a run that another process uses", _twice)
