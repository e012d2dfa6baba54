"""The manifest of a run: the format of manifest.json, and the comparison of stage inputs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from safesteer.errors import InputError
from safesteer.files import read_json

MANIFEST_NAME = "manifest.json"
SCHEMA = 1

Status = Literal["running", "done", "failed", "interrupted"]


class StageEntry(TypedDict):
    """The record of one stage."""

    status: Status
    seconds: float
    peak_memory_bytes: int
    gpu_memory_bytes: NotRequired[int]
    inputs: dict[str, Any]
    outputs: dict[str, str]


class Manifest(TypedDict):
    """The content of manifest.json."""

    schema: int
    stages: dict[str, StageEntry]
    versions: dict[str, str]
    hardware: dict[str, Any]
    model: dict[str, Any]


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a run."""
    path = folder / MANIFEST_NAME
    try:
        content = read_json(path)
    except InputError as error:
        raise InputError(f"{error}. Try: --fresh, or another --output-dir") from None
    if not looks_like_manifest(content):
        raise InputError(f"{path} is not a manifest of safesteer. Try: another --output-dir")
    if content["schema"] != SCHEMA:
        raise InputError(
            f"{path} has schema {content['schema']}, and this version of safesteer reads schema"
            f" {SCHEMA}. Try: the version that wrote it, --fresh, or another --output-dir"
        )
    try:
        TypeAdapter(Manifest).validate_python(content, strict=True)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise InputError(
            f"{path} was damaged or changed (at '{key}'). Try: --fresh, or another --output-dir"
        ) from None
    manifest: Manifest = content
    return manifest


def looks_like_manifest(content: Any) -> bool:
    """Whether a JSON document is a manifest of any schema, and not a foreign file of that name."""
    return isinstance(content, dict) and {"schema", "stages"} <= content.keys()


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
