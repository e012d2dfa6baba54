"""Output of an export: checked before a model is loaded, written under another name, renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safesteer.errors import InputError, SafeSteerError, nearest
from safesteer.files import PARTIAL, check_place, is_disk_full, write_error

NAMES = (
    *("adapter", "merged", "gguf", "lora-gguf", "teacher", "steered", "control-vector"),
    "commands",
)
FILES = ("gguf", "lora-gguf", "control-vector")  # formats of one GGUF file, not a folder
DTYPES = ("float32", "bfloat16", "float16")
WITH_DTYPE = ("merged", "gguf", "teacher")  # formats with all weights, in any dtype
RECORD = "safesteer-export.json"  # marks a folder as an export


def check_name(name: str, dtype: str | None) -> None:
    """Raise InputError for an unknown format or dtype, or a dtype where the format has none."""
    if name not in NAMES:
        raise InputError(
            f"--format {name}: unknown format{nearest(name, NAMES)}. Try: {', '.join(NAMES)}"
        )
    if dtype is not None and dtype not in DTYPES:
        raise InputError(
            f"--dtype {dtype}: unknown dtype{nearest(dtype, DTYPES)}. Try: {', '.join(DTYPES)}"
        )
    if dtype is not None and name not in WITH_DTYPE:
        raise InputError(
            f"--dtype {dtype} does not apply to --format {name}. Try: without it, or one of"
            f" {', '.join(WITH_DTYPE)}"
        )


def check_export(output: Path, name: str, force: bool) -> None:
    """Raise InputError unless `output` is free, or an earlier export and `force` is set."""
    if name in FILES and output.suffix != ".gguf":
        raise InputError(f"--output {output} does not end in .gguf. Try: a name that does")
    check_place(output)
    if not os.path.lexists(output) or (
        name not in FILES and output.is_dir() and not any(output.iterdir())
    ):
        return
    if not (_is_gguf(output) if name in FILES else (output / RECORD).is_file()):
        raise InputError(f"--output {output} exists and is no earlier export. Try: another path")
    if not force:
        raise InputError(f"--output {output} exists. Try: another path, or --force to replace it")


def require_space(output: Path, size: int) -> None:
    """Raise the error of a full disk if `size` bytes do not fit on the disk of `output`."""
    folder = output.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if shutil.disk_usage(folder).free < size:
        raise write_error(output, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


@contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A temporary path beside `output`: renamed to it at the end, deleted if anything fails.

    An earlier export at `output` is deleted only at the end. Raises SafeSteerError for a full disk,
    and InputError for a path that cannot be written.
    """
    partial = output.with_name(f"{output.stem}{PARTIAL}{output.suffix}")
    earlier = output.with_name(f"{output.stem}.earlier{PARTIAL}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _delete(partial)  # left by a killed process
        yield partial
        if output.is_dir():  # the rename below replaces files only
            os.replace(output, earlier)
        os.replace(partial, output)
    except SafeSteerError:
        raise
    except Exception as error:
        if is_disk_full(error) or (isinstance(error, OSError) and error.errno is not None):
            raise write_error(output, error) from error
        raise
    finally:
        for leftover in (partial, earlier):
            with suppress(OSError):
                _delete(leftover)


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
