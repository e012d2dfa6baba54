"""Outputs that cannot be written, or that would replace something: refused before the work."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.hostile_cases.case import Case, command, demand, stops, works
from bench.hostile_cases.room import SHORT, Room, completions, garbage, product

KIND = "outputs"
# {command: words before the path; the path is a folder or a file}
WRITERS: dict[str, list[str]] = {
    "generate": ["generate", "model", "--prompts", "harmful.jsonl", *SHORT, "--output"],
    "generate of a run": ["generate", "run", "--prompts", "harmful.jsonl", *SHORT, "--output"],
    "eval --json": ["eval", "model", "-c", "small.yaml", "--json"],
    "compare --html": ["compare", "run", "full", "--html"],
    "compare --json": ["compare", "run", "full", "--json"],
    "export commands": ["export", "run", "--format", "commands", "--output"],
    "export adapter": ["export", "run", "--format", "adapter", "--output"],
    "export merged": ["export", "run", "--format", "merged", "--output"],
    "export teacher": ["export", "run", "--format", "teacher", "--output"],
    "export gguf": ["export", "run", "--format", "gguf", "--output"],
    "run": ["run", "model", "-c", "small.yaml", "-o"],
}
FOLDERS = ("export adapter", "export merged", "export teacher", "run")


def suffixed(writer: str, name: str) -> str:
    """A GGUF file has to be called one."""
    return f"{name}.gguf" if writer == "export gguf" else name


Place = Callable[[Room, str], str]


def below_a_file(room: Room, writer: str) -> str:
    """A path whose folder is a file."""
    (room / "file").write_text("mine")
    return suffixed(writer, "file/out")


def below_proc(room: Room, writer: str) -> str:
    """A folder in which nobody can write, root included."""
    return suffixed(writer, "/proc/safesteer-out")


def of_other_kind(room: Room, writer: str) -> str:
    """A folder where a file belongs, and a file where a folder does."""
    name = suffixed(writer, "there")
    if writer in FOLDERS:
        (room / name).write_text("mine")
    else:
        (room / name).mkdir()
        (room / name / "mine.txt").write_text("mine")
    return name


def too_long(room: Room, writer: str) -> str:
    """A name of 5,000 characters."""
    return suffixed(writer, "a" * 5000)


def into_a_circle(room: Room, writer: str) -> str:
    """A link to itself."""
    name = suffixed(writer, "circle")
    (room / name).symlink_to(name)
    return name


def empty_name(room: Room, writer: str) -> str:
    """Nothing, as a shell variable that is not set leaves it."""
    return ""


def with_a_zero(room: Room, writer: str) -> str:
    """A zero byte, which no file name holds."""
    return suffixed(writer, "a\0b")


PLACES: dict[str, Place] = {
    "below a file": below_a_file,
    "where nobody can write": below_proc,
    "a file for a folder, or a folder for a file": of_other_kind,
    "a name of 5,000 characters": too_long,
    "a link to itself": into_a_circle,
    "no name": empty_name,
    "a zero byte": with_a_zero,
}
# Files that a command's output must not replace, and the commands that could.
PRECIOUS = {
    "the prompts": "harmful.jsonl",
    "the model's weights": "model/model.safetensors",
    "the model's configuration": "model/config.json",
    "the run's manifest": "run/manifest.json",
    "the run's results": "run/eval/aligned.json",
    "a thesis": "thesis.txt",
    "the prompts by a link": "link.jsonl",
    "the prompts by a hard link": "hard.jsonl",
    "the prompts by another path": "run/../harmful.jsonl",
}
FILE_WRITERS = (
    *("generate", "generate of a run", "eval --json", "compare --html", "compare --json"),
    "export commands",
)
# A file of one's own may be replaced by these; an input or a part of a run may not.
REPLACES = dict.fromkeys(("eval --json", "compare --html", "compare --json"), ("a thesis",))


def _unwritable(place: Place, writer: str, room: Room) -> None:
    path = place(room, writer)
    if writer not in ("compare --html", "compare --json", "export commands"):
        # Found before the model is loaded: these weights would be complained about.
        garbage(room / "model" / "model.safetensors")
    names = re.escape(path.partition("\0")[0][:40])
    stops(room, *WRITERS[writer], path, names=names)
    demand(not (room / "file").is_dir(), "replaced a file by a folder")


def _precious(file: str, writer: str, room: Room) -> None:
    (room / "thesis.txt").write_text("mine")
    (room / "link.jsonl").symlink_to("harmful.jsonl")
    os.link(room / "harmful.jsonl", room / "hard.jsonl")
    stops(room, *WRITERS[writer], file)


def _foreign_folder(writer: str, room: Room) -> None:
    name = suffixed(writer, "mine")
    (room / name).mkdir()
    (room / name / "thesis.txt").write_text("mine")
    stops(room, *WRITERS[writer], name, names="mine")


def _fresh_in(folder: str, room: Room) -> None:
    """`run --fresh` deletes only what is its own run's."""
    stops(room, "run", "model", "-c", "small.yaml", "-o", folder, "--fresh")


def _fresh_among(room: Room) -> None:
    """Files of one's own in a run's folder stay."""
    for name in ("thesis.txt", "eval/thesis.txt", "adapter/thesis.txt"):
        (room / "run" / name).write_text("mine")
    command(room, "run", "model", "-c", "small.yaml", "-o", "run", "--fresh")
    for name in ("thesis.txt",):
        demand((room / "run" / name).exists(), f"run --fresh deleted {name}", silent=True)


def _fresh_through_a_link(room: Room) -> None:
    """A link in place of a run's folder: what it leads to stays."""
    (room / "mine").mkdir()
    (room / "mine" / "thesis.txt").write_text("mine")
    shutil.rmtree(room / "run" / "eval")
    (room / "run" / "eval").symlink_to("../mine")
    command(room, "run", "model", "-c", "small.yaml", "-o", "run", "--fresh")
    demand((room / "mine" / "thesis.txt").exists(), "deleted a file behind a link", silent=True)


def _appends(signal_after: int, room: Room) -> None:
    """Answers that were made before Ctrl-C stay, and the same command makes the others only."""
    from transformers import LlamaForCausalLM

    words = [*WRITERS["generate"], "answers.jsonl", "--set=evaluate.advanced.batch_size=2"]
    seen = {"batches": 0}
    plain = LlamaForCausalLM.generate

    def interrupted(self, *arguments, **named):  # type: ignore[no-untyped-def]
        seen["batches"] += 1
        if seen["batches"] > signal_after:
            raise KeyboardInterrupt
        return plain(self, *arguments, **named)

    LlamaForCausalLM.generate = interrupted
    stopped = command(room, *words)
    demand(stopped.code == 130, f"exit code {stopped.code}: {stopped.err!r}")
    kept = sum(path.read_bytes().count(b'"completion"') for path in room.path.glob("answers*"))
    demand(
        kept >= 2 * (signal_after - 1), f"{kept} answers kept of {2 * signal_after}", silent=True
    )
    seen["batches"] = -1000
    works(room, *words, may_write="^answers")
    demand(
        sorted(completions(room / "answers.jsonl")) == sorted(completions(room / "greedy.jsonl")),
        "other answers than without the interruption",
        silent=True,
    )
    demand(seen["batches"] + 1000 <= 6 - signal_after + 1, "made finished answers again")


def _private(room: Room) -> None:
    """Answers to harmful prompts are for the owner's eyes."""
    for path in [room / "run" / "report.html", *(room / "run" / "eval" / "samples").iterdir()]:
        mode = path.stat().st_mode & 0o777
        demand(mode == 0o600, f"{path.name} has mode {mode:o}")


def _stdout(writer: str, room: Room) -> None:
    """/dev/stdout and /dev/null are no files to replace."""
    works(room, *WRITERS[writer], "/dev/null")
    demand(not Path("/dev/null").is_file(), "/dev/null was replaced by a file")


def cases() -> Iterator[Case]:
    """Every command that writes, at each place where it cannot or must not."""
    writers = {name: name for name in WRITERS}
    for name, (place, writer) in product(PLACES, writers):
        yield Case(KIND, name, partial(_unwritable, place, writer))
    for writer in FILE_WRITERS:
        for what, file in PRECIOUS.items():
            if what not in REPLACES.get(writer, ()):
                act = partial(_precious, file, writer)
                yield Case(KIND, f"on {what} / {writer}", act)
        yield Case(KIND, f"right: to /dev/null / {writer}", partial(_stdout, writer))
    for writer in FOLDERS:
        yield Case(KIND, f"in a folder of one's own / {writer}", partial(_foreign_folder, writer))
    for folder in ("model", "adapter", ".", "..", "run/eval", "harmful.jsonl"):
        yield Case(KIND, f"run --fresh in {folder}", partial(_fresh_in, folder))
    yield Case(KIND, "run --fresh among one's own files", _fresh_among)
    yield Case(KIND, "run --fresh through a link", _fresh_through_a_link)
    for batches in (1, 2, 4):
        yield Case(KIND, f"Ctrl-C in batch {batches + 1} of generate", partial(_appends, batches))
    yield Case(KIND, "the mode of report and samples", _private)
