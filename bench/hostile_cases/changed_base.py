"""A base that changed after its run: every command that loads it must stop."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.hostile_cases.case import Case, stops, works
from bench.hostile_cases.room import (
    RUN_COMMANDS,
    Edit,
    Room,
    Tensors,
    file_edited,
    json_edited,
    product,
    template_of,
    tensors_edited,
)

KIND = "changed base"
# These read stored results or print names, and load no model.
LOAD_NOTHING = ("compare", "export commands")
HASHES = r"hash|another model|no longer"


def one_weight(tensors: Tensors) -> Tensors:
    """A change that no shape shows."""
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 0.5
    return tensors


def other_model(folder: Path) -> None:
    """Another model of the same architecture under the same name."""
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "other", folder)


def longer_tokenizer(folder: Path) -> None:
    """A tokenizer that reads the same text otherwise."""
    path = folder / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace('"ByteLevel"', '"ByteLevel" ', 1), "utf-8")


CHANGES: dict[str, Edit] = {
    "one weight": tensors_edited(one_weight),
    "another model of the same name": other_model,
    "config.json": json_edited("config.json", rope_theta=20000.0),
    "chat template": template_of(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    ),
    "tokenizer": longer_tokenizer,
    "gone": shutil.rmtree,
}


def _changed(edit: Edit, words: list[str], gone: bool, room: Room) -> None:
    edit(room / "model")
    if words[0] == "report":  # it shows what was measured, and loads nothing
        works(room, *words, says=HASHES, may_write="^run/")
    else:
        stops(room, *words, names="model" if gone else HASHES, stdin=b"Hello\n")


def _back(words: list[str], room: Room) -> None:
    shutil.move(room / "model", room / "elsewhere")
    shutil.copytree(room / "elsewhere", room / "model")
    works(room, *words, stdin=b"Hello\n", may_write=r"^(run|full|exported|answers)")


def _files_beside(words: list[str], room: Room) -> None:
    file_edited("notes.txt", lambda path: path.write_text("mine"))(room / "model")
    works(room, *words, stdin=b"Hello\n", may_write=r"^(run|full|exported|answers)")


def cases() -> Iterator[Case]:
    """Every change, at each command that loads the base of a run."""
    loading = {k: v for k, v in RUN_COMMANDS.items() if k not in LOAD_NOTHING}
    for name, (edit, words) in product(CHANGES, loading):
        gone = name.startswith("gone")
        if gone and name.endswith("report"):
            continue  # without the model's files, the page shows earlier measurements
        yield Case(KIND, name, partial(_changed, edit, words, gone))
    for name, words in RUN_COMMANDS.items():
        yield Case(KIND, f"right: copied and back / {name}", partial(_back, words))
        yield Case(KIND, f"right: a note beside it / {name}", partial(_files_beside, words))
