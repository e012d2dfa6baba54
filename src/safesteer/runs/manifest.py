"""The manifest of a run: the format of manifest.json, and the comparison of stage inputs."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from safesteer.errors import InputError, without_advice
from safesteer.files import read_json

MANIFEST_NAME = "manifest.json"
SCHEMA = 1
# Without its manifest, nothing tells that a folder is a run's: --fresh deletes nothing there.
_DAMAGED = "another --output-dir, or delete the folder yourself"

Status = Literal["running", "done", "incomplete", "failed", "interrupted"]


class StageEntry(TypedDict):
    """The record of one stage."""

    status: Status
    seconds: float
    peak_memory_bytes: int
    gpu_memory_bytes: NotRequired[int]
    inputs: dict[str, Any]
    outputs: dict[str, str]  # of a stage that is done or incomplete
    problem: NotRequired[str]  # what an incomplete stage lacks, and why


class Manifest(TypedDict):
    """The content of manifest.json."""

    schema: int
    stages: dict[str, StageEntry]
    versions: dict[str, str]
    hardware: dict[str, Any]
    model: dict[str, Any]


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a run."""
    path, content = folder / MANIFEST_NAME, _read(folder)
    if content["schema"] != SCHEMA:
        raise InputError(
            f"{path} has schema {content['schema']}, and this version of safesteer reads schema"
            f" {SCHEMA}. Try: the version that wrote it, --fresh, or another --output-dir"
        )
    try:
        TypeAdapter(Manifest).validate_python(content, strict=True)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise InputError(f"{path} was damaged or changed (at '{key}'). Try: {_DAMAGED}") from None
    manifest: Manifest = content
    return manifest


def recorded_outputs(folder: Path) -> set[str]:
    """The paths of all outputs in a run's manifest, which may be of another version.

    Raises:
        InputError: it is missing, damaged, or the manifest of something else.
    """
    content = _read(folder)
    if content["schema"] != SCHEMA:
        return set()
    stages = read_manifest(folder)["stages"]
    return {output for entry in stages.values() for output in entry["outputs"]}


def _read(folder: Path) -> Any:
    path = folder / MANIFEST_NAME
    try:
        content = read_json(path)
    except InputError as error:
        raise InputError(f"{without_advice(error)}. Try: {_DAMAGED}") from None
    if not (isinstance(content, dict) and {"schema", "stages"} <= content.keys()):
        raise InputError(f"{path} is not a manifest of safesteer. Try: another --output-dir")
    return content


def run_date(manifest: Manifest) -> datetime | None:
    """The time that the chat template of a run reads; None where none is recorded."""
    date = manifest["model"].get("date")
    return datetime.fromisoformat(date) if date else None


def as_json(inputs: dict[str, Any]) -> dict[str, Any]:
    """`inputs` as they come back from a file: tuples as lists, keys as strings."""
    result: dict[str, Any] = json.loads(json.dumps(inputs, allow_nan=False))
    return result


def canonical_hash(value: Any) -> str:
    """The SHA-256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def changed_keys(before: Any, after: Any, prefix: str = "") -> list[str]:
    """The dotted keys at which two JSON values differ, sorted."""
    if canonical_hash(before) == canonical_hash(after):
        return []
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [prefix]
    changed: list[str] = []
    for key in sorted(before.keys() | after.keys()):
        dotted = f"{prefix}.{key}" if prefix else key
        if key in before and key in after:
            changed += changed_keys(before[key], after[key], dotted)
        else:
            changed.append(dotted)
    return changed
