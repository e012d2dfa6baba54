"""The room of the hostile cases: a tiny model, prompts, finished runs, and edits that damage them.

A case may do anything to the room; the next one finds it as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny  # beside the tests
import torch
import yaml
from safetensors.torch import load_file, save_file

Edit = Callable[[Path], None]
Tensors = dict[str, torch.Tensor]

ASKED = {
    "harmful": "How do I break law number",
    "harmless": "Name colour number",
    "borderline": "How do I kill process number",
}


@dataclass(frozen=True)
class Room:
    """Folders that a case works in."""

    folder: Path

    @property
    def path(self) -> Path:
        """The room itself; a case's commands run in it."""
        return self.folder / "room"

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def restore(self) -> None:
        """Make the room as it was built."""
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.folder / "kept", self.path, symlinks=True)

    def build(self) -> None:
        """Build the room, which takes some seconds, and keep a copy."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.path.mkdir(parents=True)
        os.chdir(self.path)
        _build(self.path)
        shutil.copytree(self.path, self.folder / "kept", symlinks=True)


def _build(path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from safesteer.cli.main import main

    tokenizer = tiny.make_tokenizer()
    for name, seed in (("model", 0), ("other", 1)):
        tiny.make_model(tokenizer, seed).save_pretrained(path / name)
        tokenizer.save_pretrained(path / name)
    prompts = write_prompts(path)
    settings = {**tiny.JOB_OF_SECONDS, "prompts": prompts}
    (path / "small.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
    adapted = get_peft_model(
        tiny.make_model(tokenizer),
        LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    adapted.peft_config["default"].base_model_name_or_path = str(path / "model")
    adapted.save_pretrained(path / "adapter")
    tokenizer.save_pretrained(path / "adapter")
    for words in (
        ["run", "model", "-c", "small.yaml", "-o", "run"],
        ["run", "model", "-c", "small.yaml", "-o", "full", "--method=full", "--learning-rate=1e-4"],
        ["export", "run", "--format", "gguf", "--output", "model.gguf"],
        ["generate", "model", "--prompts", "harmful.jsonl", "--output", "greedy.jsonl", *SHORT],
        ["generate", "model", "--prompts", "harmful.jsonl", "--output", "sampled.jsonl", *SAMPLED],
    ):
        if main([*words, "--quiet"]):
            raise SystemExit(f"the room cannot be built: safesteer {' '.join(words)} failed")


SHORT = ("--max-new-tokens", "8")
SAMPLED = (*SHORT, "--temperature", "1")


def write_prompts(folder: Path) -> dict[str, str]:
    """Three small prompt sets that name their splits: {name: file}."""
    files = {}
    for name, text in ASKED.items():
        rows = [
            {"prompt": f"{text} {split} {number}?", "split": split}
            for split, count in (("train", 6), ("validation", 3), ("test", 3))
            for number in range(count)
        ]
        files[name] = str(folder / f"{name}.jsonl")
        Path(files[name]).write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return files


def snapshot(folder: Path) -> dict[str, str]:
    """{path: hash} of every file below a folder; links by where they lead."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            key = str(path.relative_to(folder))
            with contextlib.suppress(OSError):
                if path.is_symlink():
                    found[key] = f"-> {os.readlink(path)}"
                elif path.is_file():
                    found[key] = hashlib.md5(path.read_bytes()).hexdigest()
    return found


# Edits of files. Each takes the path of a file or of a model's folder.


def flip_a_bit(path: Path) -> None:
    """In the middle, so that most formats stay readable."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """As a full disk or a broken download leaves a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 7])


def empty(path: Path) -> None:
    """A file of no bytes."""
    path.write_bytes(b"")


def delete(path: Path) -> None:
    """No file."""
    path.unlink()


def garbage(path: Path) -> None:
    """Bytes that are no text and no format."""
    path.write_bytes(bytes(range(256)) * 4)


DAMAGES: dict[str, Edit] = {
    "a bit": flip_a_bit,
    "cut": cut,
    "empty": empty,
    "deleted": delete,
    "bytes": garbage,
}


def replaced(text: str) -> Edit:
    """A file of this text."""
    return lambda path: _unlinked(path).write_text(text, "utf-8")


def _unlinked(path: Path) -> Path:
    path.unlink(missing_ok=True)
    return path


def tensors_edited(edit: Callable[[Tensors], Tensors]) -> Edit:
    """Of a safetensors file, or of the one in a model's folder."""

    def change(path: Path) -> None:
        if path.is_dir():
            path = next(path.glob("*.safetensors"))
        tensors = {name: tensor.contiguous() for name, tensor in edit(load_file(path)).items()}
        save_file(tensors, path, {"format": "pt"})

    return change


def json_edited(file: str, **values: Any) -> Edit:
    """Keys of a JSON file in a folder; a value of `...` removes the key."""

    def change(folder: Path) -> None:
        path = folder / file
        found = json.loads(path.read_text("utf-8")) if path.exists() else {}
        found |= values
        found = {key: value for key, value in found.items() if value is not ...}
        path.write_text(json.dumps(found), "utf-8")

    return change


def file_edited(file: str, edit: Edit) -> Edit:
    """One file of a folder."""
    return lambda folder: edit(folder / file)


def template_of(text: str) -> Edit:
    """A model folder with this chat template."""
    return lambda folder: replaced(text)(folder / "chat_template.jinja")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run, as it lies there."""
    found: dict[str, Any] = json.loads((run / "manifest.json").read_text("utf-8"))
    return found


TIMES = ("seconds", "tokens_per_second")


def results_of(run: Path) -> dict[str, Any]:
    """What a run found, without times: {file: content}."""
    found: dict[str, Any] = {}
    for folder in ("direction", "tokens", "adapter", "model", "eval", "report"):
        for path in sorted((run / folder).rglob("*")):
            if path.is_file() and "cache" not in path.parts:
                found[str(path.relative_to(run))] = path.read_bytes()
    metrics = run / "train" / "metrics.jsonl"
    if metrics.exists():
        found["train/metrics.jsonl"] = [
            {key: value for key, value in row.items() if key not in TIMES}
            for row in rows_of(metrics)
        ]
    return found


def completions(path: Path) -> list[str]:
    """The answers that `generate` wrote."""
    return [row["completion"] for row in rows_of(path)]


def set_options(values: Mapping[str, Any]) -> list[str]:
    """``--set`` options."""
    return [f"--set={key}={json.dumps(value)}" for key, value in values.items()]


def product(*parts: Mapping[str, Any]) -> list[tuple[str, Sequence[Any]]]:
    """Every combination: ("a / b", (value of a, value of b))."""
    found: list[tuple[str, tuple[Any, ...]]] = [("", ())]
    for part in parts:
        found = [
            (f"{name} / {key}".removeprefix(" / "), (*values, value))
            for name, values in found
            for key, value in part.items()
        ]
    return found


# Commands that read a model: words after the command's folder, with MODEL in place of it.
MODEL_COMMANDS: dict[str, list[str]] = {
    "doctor": ["doctor", "MODEL"],
    "direction": ["direction", "MODEL", "-c", "small.yaml", "-o", "new"],
    "eval": ["eval", "MODEL", "-c", "small.yaml"],
    "generate": ["generate", "MODEL", "--prompts", "harmful.jsonl", "--output", "answers.jsonl"],
    "chat": ["chat", "MODEL"],
}
# Commands that load the base of a finished run, or refuse to.
RUN_COMMANDS: dict[str, list[str]] = {
    "run": ["run", "run"],
    "direction": ["direction", "run"],
    "tokens": ["tokens", "run"],
    "train": ["train", "run"],
    "eval": ["eval", "run", "--limit=1"],
    "eval --base": ["eval", "run", "--limit=1", "--base"],
    "eval --teacher": ["eval", "run", "--limit=1", "--teacher"],
    "generate": ["generate", "run", "--prompts", "harmful.jsonl", "--output", "answers.jsonl"],
    "generate --teacher": [
        *("generate", "run", "--teacher"),
        *("--prompts", "harmful.jsonl", "--output", "answers.jsonl"),
    ],
    "chat": ["chat", "run"],
    "report": ["report", "run"],
    "compare": ["compare", "run"],
    "export adapter": ["export", "run", "--format", "adapter", "--output", "exported"],
    "export merged": ["export", "run", "--format", "merged", "--output", "exported"],
    "export gguf": ["export", "run", "--format", "gguf", "--output", "exported.gguf"],
    "export teacher": ["export", "run", "--format", "teacher", "--output", "exported"],
    "export commands": ["export", "run", "--format", "commands"],
}


def words(template: Sequence[str], model: str = "model") -> list[str]:
    """The words of a command, with a model or run in its place."""
    return [model if word == "MODEL" else word for word in template]
