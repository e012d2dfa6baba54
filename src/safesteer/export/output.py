"""Where an export goes: looked at before a model is loaded, written beside it, then renamed.

Knows the names of the formats and nothing of what they hold.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safesteer.errors import InputError, SafeSteerError, nearest
from safesteer.files import PARTIAL, write_error

NAMES = ("adapter", "merged", "gguf", "teacher", "steered", "commands")
DTYPES = ("float32", "bfloat16", "float16")
ROUNDED = ("merged", "gguf", "teacher")  # those that store all weights, in a type of one's choice
RECORD = "safesteer-export.json"  # in every folder that is an export: what it is made of


def check_name(name: str, dtype: str | None) -> None:
    """Raise InputError for an unknown format or type, or a type where none can be chosen."""
    if name not in NAMES:
        raise InputError(
            f"--format {name}: no such format{nearest(name, NAMES)}; there are {', '.join(NAMES)}"
        )
    if dtype is not None and dtype not in DTYPES:
        raise InputError(
            f"--dtype {dtype}: no such type{nearest(dtype, DTYPES)}; there are {', '.join(DTYPES)}"
        )
    if dtype is not None and name not in ROUNDED:
        raise InputError(
            f"--dtype {dtype}: nothing is rounded with --format {name}; leave it out, or use"
            f" {', '.join(ROUNDED)}"
        )


def check_output(output: Path, name: str, force: bool) -> None:
    """Raise InputError unless `output` may be written, or replaced with `force`.

    Only what an earlier export has left is ever replaced.
    """
    if name == "gguf" and output.suffix != ".gguf":
        raise InputError(f"--output {output}: give a file whose name ends in .gguf")
    if not os.path.lexists(output) or (name != "gguf" and _is_empty_folder(output)):
        return
    if not (_is_gguf(output) if name == "gguf" else (output / RECORD).is_file()):
        raise InputError(f"{output} exists and is no earlier export; choose another --output")
    if not force:
        raise InputError(f"{output} exists; choose another --output, or replace it with --force")


def require_space(output: Path, size: int) -> None:
    """Raise the error of a full disk if `size` bytes do not fit where `output` goes."""
    folder = output.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if shutil.disk_usage(folder).free < size:
        raise write_error(output, _full(output))


@contextmanager
def written_whole(output: Path) -> Iterator[Path]:
    """A name beside `output` to write to; renamed at the end, deleted if anything fails.

    What was at `output` goes away only then. Raises SafeSteerError for a full disk and InputError
    for a place that may not be written to.
    """
    partial = output.with_name(f"{output.stem}{PARTIAL}{output.suffix}")
    earlier = output.with_name(f"{output.stem}.earlier{PARTIAL}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _delete(partial)  # of a process that was killed
        yield partial
        if output.is_dir():  # a file is replaced by the rename itself
            os.replace(output, earlier)
        os.replace(partial, output)
    except SafeSteerError:
        raise
    except Exception as error:
        if _says_full(error):
            raise write_error(output, _full(output)) from error
        if isinstance(error, OSError) and error.errno is not None:
            raise write_error(output, error) from error
        raise
    finally:
        for leftover in (partial, earlier):
            with suppress(OSError):
                _delete(leftover)


def _full(output: Path) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output))


def _says_full(error: Exception) -> bool:
    """Whether a library says that the disk is full: safetensors and numpy in words of their own."""
    text = str(error)
    return "No space left" in text or (" requested and " in text and " written" in text)


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
