"""Sources of prompts: files, folders, hub data sets and our own sets, each as a table of rows."""

from __future__ import annotations

import gzip
import importlib
import re
import zlib
from importlib import resources
from pathlib import Path
from typing import Any

from safesteer.errors import InputError, nearest, one_line
from safesteer.prompts.encodings import decode
from safesteer.prompts.formats import (
    BINARY_FORMATS,
    TEXT_FORMATS,
    numbered,
    parse_text,
    read_binary,
)
from safesteer.prompts.rows import PROMPT_SETS, Row, Table

BUILTIN_PREFIX = "builtin:"
# What "builtin:NAME" reads: files of data/, one after the other.
BUILTIN_FILES = {name: (name,) for name in PROMPT_SETS} | {
    "borderline-large": ("borderline", "borderline-more")
}
FORMATS = (*TEXT_FORMATS, *BINARY_FORMATS)
_POINTER = b"version https://git-lfs.github.com/spec/"
_SHOWN_FORMATS = ".jsonl, .json, .csv, .tsv, .txt or .parquet"
# Such a source is taken for a file, although "data/prompts.md" could be a hub id.
OTHER_FILE = re.compile(r"\.(md|toml|xml|html?|xlsx?|ods|pkl|pt|gz|zip)", re.IGNORECASE)
HUB_ID = re.compile(
    r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(:(?P<config>[^:@]*))?(:(?P<split>[^:@]*))?"
    r"(@(?P<revision>[^@]+))?"
)


def read_table(source: str | Path, column: str | None = None) -> Table:
    """Read all rows of a file, a folder, a hub data set or "builtin:NAME".

    `column` names the only column of a list of strings; "prompt" by default.
    """
    text = str(source)
    if text == "builtin" or text.startswith(BUILTIN_PREFIX):
        table = _read_builtin(text)
    elif isinstance(source, Path) or is_file_source(text):
        table = _read_path(Path(source), column)
    else:
        table, _ = read_hub(text)
    if not table.rows:
        raise InputError(f"{text} holds no prompts. Try: a source with at least one row")
    return table


def read_rows(source: str | Path) -> list[Row]:
    """Read all rows of a source; a row that cannot be read is an error."""
    return read_table(source).complete()


def is_file_source(text: str) -> bool:
    """Whether a source is a file rather than a hub id, by its form or because it exists."""
    path = Path(text)
    if text.startswith((".", "/", "~")) or path.suffix.lower() in FORMATS:
        return True
    try:
        return OTHER_FILE.fullmatch(path.suffix) is not None or (text != "" and path.exists())
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def _read_builtin(source: str) -> Table:
    name = source.removeprefix(BUILTIN_PREFIX)
    if name not in BUILTIN_FILES:
        choices = ", ".join(BUILTIN_PREFIX + known for known in BUILTIN_FILES)
        raise InputError(
            f"no prompt set named {source!r}{nearest(source, choices.split(', '))}. Try: {choices}"
        )
    data = resources.files("safesteer.prompts") / "data"
    texts = [(data / f"{file}.jsonl").read_text(encoding="utf-8") for file in BUILTIN_FILES[name]]
    return parse_text("".join(texts), ".jsonl", source, None)


def _read_path(path: Path, column: str | None) -> Table:
    source = str(path)
    try:
        path = path.expanduser()
        if path.is_dir():
            if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
                return _read_saved(path, source)
            path = _only_file(path, source)
            source = str(path)
        return _read_file(path, source, column)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{source} is not a complete .gz file ({error}). Try: download or write it again"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{source} cannot be read ({one_line(error)}). Try: check the path and its permissions"
        ) from error


def _read_file(path: Path, source: str, column: str | None) -> Table:
    if not path.exists():
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(
            f"{source} does not exist{nearest(path.name, siblings)}. Try: check the path"
        )
    packed = path.suffix.lower() == ".gz"
    suffix = (path.with_suffix("") if packed else path).suffix.lower()
    if suffix and suffix not in FORMATS:
        raise InputError(
            f"{source} has the extension {suffix!r}, and its format is not supported."
            f" Try: save the prompts as {_SHOWN_FORMATS}"
        )
    with open(path, "rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise InputError(f"{source} is a pointer of Git LFS, not the file. Try: git lfs pull")
    if suffix in BINARY_FORMATS:
        return read_binary(path, suffix, source)
    data = path.read_bytes()
    text, note = decode(gzip.decompress(data) if packed else data, source)
    table = parse_text(text, suffix, source, column)
    return Table(source, table.rows, (*table.notes, note) if note else table.notes)


def _only_file(folder: Path, source: str) -> Path:
    """The only data file of a folder."""
    data: list[Path] = []
    for pattern, endings in (("*", _TABLES), ("*/*", _TABLES), ("*", (".txt", ".txt.gz"))):
        files = sorted(file for file in folder.glob(pattern) if file.name not in _NO_TABLES)
        visible = [file for file in files if "/." not in f"/{file.relative_to(folder)}"]
        data = data or [file for file in visible if file.name.lower().endswith(endings)]
    if len(data) == 1:
        return data[0]
    names = ", ".join(file.name for file in data[:6]) + ", ..." * (len(data) > 6)
    found = f"{len(data)} data files ({names})" if data else "no data file"
    raise InputError(f"{source} is a folder with {found}. Try: a {_SHOWN_FORMATS} file in it")


_NO_TABLES = ("dataset_info.json", "dataset_infos.json")
_TABLES = tuple(
    form + packed
    for form in (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
    for packed in ("", ".gz")
)


def _read_saved(path: Path, source: str) -> Table:
    """A folder that `save_to_disk` of the package datasets has written."""
    datasets = _datasets(source)
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # any of the library's or of Arrow's
        raise InputError(
            f"{source} cannot be loaded as a saved data set ({one_line(error):.160})."
            " Try: save it again"
        ) from error
    if isinstance(saved, datasets.Dataset):
        return Table(source, numbered(list(map(dict, saved))))
    part, notes = _part(saved, None, source, f"{source}/SPLIT")
    return Table(source, numbered(list(map(dict, part))), notes)


def read_hub(source: str) -> tuple[Table, str | None]:
    """Read the rows of a hub data set, and their commit where the library reveals it.

    `source` is owner/name or owner/name:config:split, either with @revision (branch, tag, commit).
    """
    hub_id = HUB_ID.fullmatch(source)
    if hub_id is None:
        raise InputError(
            f"{source!r} is not a prompt source. Try: a {_SHOWN_FORMATS} file, a hub data"
            " set (owner/name or owner/name:config:split), or builtin:NAME"
        )
    name, config, split = hub_id["name"], hub_id["config"], hub_id["split"]
    revision = {"revision": hub_id["revision"]} if hub_id["revision"] else {}
    datasets = _datasets(source)
    try:
        parts = datasets.load_dataset(name, config or None, **revision)
    # The library raises a dozen unrelated types for an unknown id, a gated set or no network.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"{source} is not a file, and cannot be loaded as a hub data set ({reason})."
            " Try: check the name and the network"
        ) from error
    part, notes = _part(parts, split, source, f"{name}:{config or ''}:SPLIT")
    return Table(source, numbered(list(map(dict, part))), notes), commit_of(part)


def _part(
    parts: Any, split: str | None, source: str, form: str
) -> tuple[Any, tuple[str, ...]]:  # the split, notes
    """The split that is named, or the only one, or train."""
    known = [str(part) for part in parts]
    chosen = split or (known[0] if len(known) == 1 else "train")
    if chosen not in known:
        raise InputError(
            f"{source} has no split {chosen!r}{nearest(chosen, known)}."
            f" Try: {form}, where SPLIT is one of {', '.join(known)}"
        )
    others = ", ".join(name for name in known if name != chosen)
    unread = not split and others
    return parts[chosen], (f"split {chosen} is read, not {others}",) if unread else ()


def _datasets(source: str) -> Any:
    try:
        return importlib.import_module("datasets")  # slow to import
    except ImportError as error:
        raise InputError(
            f"{source}: hub data sets need the package datasets. Try: pip install datasets"
        ) from error


def commit_of(part: object) -> str | None:
    """The commit of a hub data set's split: the library caches it in a folder of that name."""
    for file in getattr(part, "cache_files", None) or []:
        if found := re.search(r"[/\\]([0-9a-f]{40})[/\\]", str(file.get("filename", ""))):
            return found[1]
    return None
