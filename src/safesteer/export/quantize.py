"""llama.cpp's ``llama-quantize``: a GGUF file in fewer bits."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

from safesteer.errors import InputError, SafeSteerError, nearest
from safesteer.export.llama_cpp import INSTALL, PACKAGE, is_installed

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
_TOOL = "llama-quantize"
_PACKAGE = "ik_llama_cpp"  # a fork of llama.cpp, whose wheel has the tool


def read_types(text: str) -> list[str]:
    """The types of a list such as ``Q8_0,Q4_K_M``; InputError for unknown ones and for none."""
    found = list(dict.fromkeys(word.strip().upper() for word in text.split(",") if word.strip()))
    if text and not found:
        raise InputError(f"--quantize '{text}' names no type. Try: {', '.join(TYPES)}")
    for name in found:
        if name not in TYPES:
            raise InputError(
                f"--quantize {name}: unknown type{nearest(name, TYPES)}. Try: {', '.join(TYPES)}"
            )
    return found


def quantized_path(file: Path, name: str) -> Path:
    """Where a file of type `name` goes: model.gguf to model-Q8_0.gguf."""
    return file.with_name(f"{file.stem}-{name}{file.suffix}")


def require_tools() -> None:
    """Raise InputError unless llama-quantize and llama.cpp's server are there."""
    missing = [name for name, there in ((_TOOL, _tool()), (PACKAGE, is_installed())) if not there]
    if missing:
        raise InputError(f"--quantize needs {' and '.join(missing)}. Try: {INSTALL}")


def quantize(file: Path, target: Path, name: str) -> None:
    """Write `target`, of type `name`. Raises SafeSteerError if the tool fails."""
    done = subprocess.run(
        [_tool() or _TOOL, str(file), str(target), name], capture_output=True, text=True
    )
    if done.returncode or not target.is_file():
        said = " ".join((done.stderr or done.stdout).strip().splitlines()[-1:])[:160]
        raise SafeSteerError(
            f"{_TOOL} cannot write {name} ({said or done.returncode}). Try: another type, or more"
            " disk space"
        )


def _tool() -> str | None:
    """The program on the path, else the one of the package."""
    if found := shutil.which(_TOOL):
        return found
    package = importlib.util.find_spec(_PACKAGE)
    folders = package.submodule_search_locations if package else None
    return shutil.which(_TOOL, path=str(Path(folders[0]) / "bin")) if folders else None
