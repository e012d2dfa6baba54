"""Files that a run writes, and the deletion of these alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from safesteer.errors import InputError
from safesteer.files import PARTIAL, TEMPORARY_PATTERN

CONFIG_NAME = "config.yaml"
PAGE, CARD = "report.html", "README.md"
FOLDERS = ("direction", "tokens", "repairs", "train", "adapter", "model", "eval", "report")
FILES = (CONFIG_NAME, PAGE, CARD)

# What may lie in these folders beside the outputs that the manifest records; `*` matches `/`, too.
_WRITTEN = (
    *FILES,
    *("direction/direction.json", "direction/direction.safetensors", "tokens/safety_tokens.json"),
    *("repairs/repairs.json", "repairs/answers.jsonl"),
    *("train/metrics.jsonl", "train/checkpoint-*/*", "train/runs/*", "train/kfac/*"),
    *("eval/*.json", "eval/samples/*.jsonl", "eval/cache/*.jsonl", "report/measurements.json"),
    *(f"{name}{PARTIAL}/*" for name in FOLDERS),
    f"*/{TEMPORARY_PATTERN}",
    *("*/.DS_Store", "*/Thumbs.db", "*/.nfs*"),  # of file managers and network disks
)
# What transformers and peft save, in the folders adapter and model.
_OF_A_MODEL = (
    *("*.safetensors", "*.safetensors.index.json", "*config.json", "tokenizer*", "*.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("chat_template*", "additional_chat_templates/*"),
)


def delete_own_files(run: Path, recorded: Collection[str]) -> None:
    """Delete what a run wrote into its folder, except its manifest and its lock.

    Files and folders of other names are left alone, and no symbolic link is followed. The manifest
    stays until it is overwritten: without it the rest would be a foreign folder.

    Args:
        run: the folder of the run, which has a manifest.
        recorded: the outputs that the manifest records, relative to the folder.

    Raises:
        InputError: something under these names was not written by a run. Nothing is deleted then.
    """
    names = (*FOLDERS, *(f"{name}{PARTIAL}" for name in FOLDERS), *FILES)
    check_own_files(run, recorded, names)
    for name in names:
        path = run / name
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            why = error.strerror or error
            raise InputError(f"cannot delete {path}: {why}. Try: another --output-dir") from None


def check_own_files(run: Path, recorded: Collection[str], names: Iterable[str]) -> None:
    """Raise InputError if the entries `names` of a run's folder hold what no run wrote."""
    foreign = [
        file
        for name in names
        for file in _below(run, name)
        if (run / file).is_symlink() or not (file in recorded or _is_written(file))
    ]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise InputError(
            f"{run} holds files that no run has written, and they would be deleted:"
            f" {', '.join(foreign[:3])}{more}. Try: move them away, or another --output-dir"
        )


def _below(run: Path, name: str) -> list[str]:
    """The files of an entry of the folder, and its symbolic links, relative to the folder."""
    path = run / name
    if path.is_symlink() or not path.is_dir():
        return [name] if os.path.lexists(path) else []
    found = (below for below in path.rglob("*") if below.is_symlink() or not below.is_dir())
    return sorted(below.relative_to(run).as_posix() for below in found)


def _is_written(file: str) -> bool:
    folder, _, name = file.partition("/")
    patterns = _OF_A_MODEL if folder in ("adapter", "model") else ()
    return any(fnmatchcase(file, pattern) for pattern in _WRITTEN) or any(
        fnmatchcase(name, pattern) for pattern in patterns
    )
