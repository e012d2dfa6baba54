"""Atomic files, hashes, and errors that name the file.

Every write goes to a temporary name in the same folder, is flushed to disk and then renamed, so a
reader never sees half a file, whatever ends the process. Private files, which hold what models say,
are readable by their owner alone.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesteer.errors import InputError, SafeSteerError

if TYPE_CHECKING:
    from torch import Tensor

# A killed process can leave one of these behind; a run removes them when it is opened again.
PARTIAL = ".partial"  # suffix of a folder that is being written
TEMPORARY_PATTERN = ".safesteer-*.tmp"

_PRIVATE = 0o600
_LARGE = 1 << 24  # bytes of a file whose hash is remembered

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your disk quota is used up",
    errno.EFBIG: "files of that size are not allowed here (ulimit -f)",
}
# Libraries that have no error number say it so: safetensors, torch.save, numpy.
_FULL_WORDS = re.compile(
    r"No space left|quota exceeded|\(os error (27|28|122)\)"
    r"|inline_container.*(unexpected pos|failed)| requested and .* written"
)
_FORBIDDEN = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
}
_RESTORE = "Try: bring it back from a copy, or make or download it again"
_WRONG_PATH = {
    errno.EEXIST,
    errno.EISDIR,
    errno.EINVAL,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
}


def write_text(path: str | Path, text: str, *, private: bool = False) -> None:
    """Write `text` as UTF-8; a `private` file is readable by its owner alone."""
    _write(Path(path), text.encode("utf-8"), private)


def write_json(path: str | Path, value: Any, *, private: bool = False) -> None:
    """Write one JSON document.

    Raises:
        SafeSteerError: the value holds NaN or infinity, or the file cannot be written.
    """
    write_text(path, _dumps(value, Path(path), indent=1) + "\n", private=private)


def write_jsonl(path: str | Path, rows: Iterable[Any], *, private: bool = False) -> None:
    """Write one JSON document per line. All rows are made before the file is opened."""
    text = "".join(_dumps(row, Path(path)) + "\n" for row in rows)
    write_text(path, text, private=private)


def check_output(
    path: Path, option: str, *, force: bool = False, inputs: Iterable[str | Path] = ()
) -> None:
    """Raise InputError unless a file can be written to `path` and nothing is lost by it.

    Args:
        path: the file to be written later; nothing is written now.
        option: the option that names it, for the message.
        force: whether another file at `path` may be replaced.
        inputs: files that the command reads, which are never replaced.
    """
    check_place(path)
    if any(os.path.exists(each) and path.exists() and path.samefile(each) for each in inputs):
        raise InputError(f"{option} {path} is a file that this command reads. Try: another path")
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder. Try: a file in it")
    if not force and path.is_file() and path.stat().st_size:
        raise InputError(f"{option} {path} exists. Try: another path, or --force to replace it")


def check_outputs(
    outputs: Mapping[str, Path | None], *, force: bool, inputs: Iterable[str | Path] = ()
) -> None:
    """Check each output of {option: file} with `check_output`, and that no two are one file."""
    options: dict[Path, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        check_output(path, option, force=force, inputs=inputs)
        regular = path.is_file() or not path.exists()
        if regular and (other := options.setdefault(path.resolve(), option)) != option:
            raise InputError(f"{other} and {option} name one file, {path}. Try: another path")


def check_place(path: Path) -> None:
    """Raise the error of writing `path` if nothing can be written there; nothing is left there."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            return  # a pipe or a device, such as /dev/stdout
        place = path.resolve()
        with suppress(FileNotFoundError):
            os.lstat(place.with_name(place.name + PARTIAL))  # a name may be too long
        folder = place.parent
        while not folder.exists():
            folder = folder.parent
        probe = folder / TEMPORARY_PATTERN.replace("*", uuid.uuid4().hex)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise write_error(path, error) from error
    except ValueError:  # a zero byte
        raise write_error(path, OSError(errno.EINVAL, os.strerror(errno.EINVAL))) from None
    except RuntimeError:  # pathlib's own, for a link that leads to itself
        raise write_error(path, OSError(errno.ELOOP, os.strerror(errno.ELOOP))) from None


def append_line(path: str | Path, line: bytes) -> None:
    """Append a line to a private file, on a new line even after the half line of a killed process.

    Raises:
        OSError: as it comes, since some callers ignore it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+", opener=partial(os.open, mode=_PRIVATE)) as file:
        with suppress(OSError):  # a file of an earlier version, or of another owner
            os.chmod(path, _PRIVATE)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line + b"\n")


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors; a copy of them all is made in memory."""
    from safetensors.torch import save

    # `save_file` would make the file readable by its owner alone, and replace a device by a file.
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    _write(Path(path), save(contiguous, dict(metadata) if metadata else None))


def read_lines(path: str | Path) -> Iterator[Any]:
    """Yield the JSON documents of a file written by `append_line`, skipping damaged lines.

    Raises:
        OSError: as it comes.
    """
    for line in Path(path).read_bytes().split(b"\n"):
        with suppress(ValueError, RecursionError):
            yield json.loads(line)


def read_json(path: str | Path) -> Any:
    """Read one JSON document.

    Raises:
        InputError: the file is missing, truncated or not JSON.
    """
    data = _read(Path(path))
    if not data.strip():
        raise InputError(f"{path} is empty; it was damaged or truncated. {_RESTORE}")
    try:
        return json.loads(data.decode("utf-8"))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(
            f"{path} is not valid JSON ({place}); it was damaged or truncated. {_RESTORE}"
        ) from None
    except (UnicodeDecodeError, RecursionError):
        raise InputError(f"{path} is not a JSON text file. {_RESTORE}") from None


def read_object(path: str | Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        InputError: the file is missing, truncated, not JSON, or JSON of another kind.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object. {_RESTORE}")
    return content


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file onto the CPU; nothing is ever unpickled.

    Raises:
        InputError: the file is missing, truncated or not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(_read(Path(path)))
    except SafetensorError as error:
        raise InputError(
            f"{path} is not a complete safetensors file ({error}). {_RESTORE}"
        ) from None


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's content, as hexadecimal digits.

    A large file that did not change since is read once in a process.
    """
    try:
        found = os.stat(path)
        if found.st_size < _LARGE:
            return _sha256(path)
        return _sha256_of_version(
            os.path.abspath(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
        )
    except OSError as error:
        raise _read_error(path, error) from None


@lru_cache(maxsize=1024)
def _sha256_of_version(path: str, *version: int) -> str:
    return _sha256(path)


def _sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_error(path: str | Path, error: Exception) -> SafeSteerError:
    """The error to raise when writing `path` failed."""
    number: Any = getattr(error, "errno", None)
    if number is None and (found := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(found[1])
    if is_disk_full(error):
        return SafeSteerError(
            f"cannot write {path}: {_FULL.get(number) or _FULL[errno.ENOSPC]}. Try: free some space"
            " and run the same command again, which keeps finished work"
        )
    if number in _FORBIDDEN:
        return InputError(f"cannot write {path}: {_FORBIDDEN[number]}. Try: another folder")
    kind = InputError if number in _WRONG_PATH else SafeSteerError
    what = getattr(error, "strerror", None) or error
    return kind(f"cannot write {path}: {what}. Try: another path")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, of any library, means that the disk or the user's quota on it is full."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return _FULL_WORDS.search(str(error)) is not None


def _write(path: Path, data: bytes, private: bool = False) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if path.exists() and not path.is_file():
            # A pipe or a device, such as /dev/stdout: renaming over it would destroy it.
            path.write_bytes(data)
            return
        # A symbolic link stays; the file that it points to is replaced.
        _replace(path.resolve(), data, _PRIVATE if private else 0o666)
    except OSError as error:
        raise write_error(path, error) from error


def _replace(path: Path, data: bytes, mode: int) -> None:
    temporary = path.parent / TEMPORARY_PATTERN.replace("*", uuid.uuid4().hex)
    try:
        with open(temporary, "xb", opener=partial(os.open, mode=mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, if the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _dumps(value: Any, path: Path, indent: int | None = None) -> str:
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise SafeSteerError(
            f"cannot write {path}: {error}. Try: --debug, which shows where the value comes from"
        ) from None
    # Half a surrogate pair, which a prompt file can contain, has no UTF-8 and must be escaped.
    if any("\ud800" <= character <= "\udfff" for character in text):
        text = json.dumps(value, indent=indent, allow_nan=False)
    return text


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _read_error(path, error) from None


def _read_error(path: str | Path, error: OSError) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} does not exist. Try: check the path")
    if isinstance(error, IsADirectoryError):
        return InputError(f"{path} is a folder, not a file. Try: a file in it")
    return InputError(
        f"cannot read {path}: {error.strerror or error}. Try: check the path and its permissions"
    )
