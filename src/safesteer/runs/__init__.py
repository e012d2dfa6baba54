"""Runs on the disk: files written whole or not at all, the manifest, and stages that resume."""

from safesteer.runs.directory import RunDirectory, StageCost
from safesteer.runs.files import (
    load_tensors,
    read_json,
    save_tensors,
    sha256_file,
    write_error,
    write_json,
    write_jsonl,
    write_text,
)
from safesteer.runs.stage import StageRecord

__all__ = [
    "RunDirectory",
    "StageCost",
    "StageRecord",
    "load_tensors",
    "read_json",
    "save_tensors",
    "sha256_file",
    "write_error",
    "write_json",
    "write_jsonl",
    "write_text",
]
