"""Recipes and config files: YAML into settings, with overrides and one-line errors."""

from __future__ import annotations

import copy
import difflib
import re
import reprlib
import textwrap
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from safesteer.config.settings import Section, Settings
from safesteer.config.yaml_text import parse_yaml, read_config
from safesteer.errors import InputError, hide_keys, nearest

_EXTENDS = "extends"  # the key with which a file names the recipe that it changes
_KEYS = "`safesteer recipes show default --all`, which explains every key"
_LIST = "a name that `safesteer recipes list` shows"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, in alphabetical order."""
    return _names("")


def accelerate_names() -> list[str]:
    """Names of the config files for `accelerate launch` that come with the package."""
    return _names("accelerate/")


def _names(folder: str) -> list[str]:
    return sorted(
        folder + entry.name.removesuffix(".yaml")
        for entry in (resources.files("safesteer.config") / "recipes" / folder).iterdir()
        if entry.name.endswith(".yaml")
    )


def recipe_text(name: str) -> str:
    """The YAML text of a recipe or of a config file for accelerate, comments included."""
    if name not in [*recipe_names(), *accelerate_names()]:
        raise InputError(f"no recipe named '{name}'{nearest(name, recipe_names())}. Try: {_LIST}")
    return (resources.files("safesteer.config") / "recipes" / f"{name}.yaml").read_text("utf-8")


def recipe_for_model(model_id: str) -> str:
    """The recipe of a model's name, or the first whose ``model.id`` it is, or `default`."""
    names = recipe_names()
    if model_id in names:
        return model_id
    return next((name for name in names if recipe_model(name) == model_id), "default")


def recipe_model(name: str) -> str | None:
    """The ``model.id`` of a recipe; None for one of any model."""
    model_id: str | None = yaml.safe_load(recipe_text(name)).get("model", {}).get("id")
    return model_id


def load_settings(
    config: str | Path | None = None, overrides: list[str] | None = None, **sections: Any
) -> Settings:
    """Read a recipe or a YAML file, apply changes, and validate.

    Args:
        config: a recipe's name or the path of a YAML file, in which ``extends: RECIPE`` takes over
            what the file does not set. None means the defaults.
        overrides: ``section.key=value``, which win over everything.
        sections: sections as dictionaries, whole or in part, which win over the file.

    Returns:
        The settings, with every key.

    Raises:
        InputError: one line with the file, the key and the nearest right one.
    """
    where, text = _read(config) if config is not None else ("settings", None)
    values = copy.deepcopy(_merged(_resolved(where, text), sections, Settings))
    for override in overrides or []:
        _apply_override(values, override)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        with suppress(ValidationError):
            Settings.model_validate(_resolved(where, text))
            where = "settings"  # the file is right, so an option is wrong
        message = _explain(error)
        advice = "" if "Try: " in message else f". Try: {_KEYS}"
        raise InputError(f"{where}: {message}{advice}") from None


def recipe_base(name: str) -> str | None:
    """The recipe that a recipe extends; None for one that stands alone."""
    base: str | None = yaml.safe_load(recipe_text(name)).get(_EXTENDS)
    return base


def _resolved(where: str, text: str | None, extended: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a YAML text over those of the recipes that it extends; of no text, none."""
    values = {} if text is None else parse_yaml(text, where)
    if values is None:
        raise InputError(f"{where}: it is empty. Try: `extends: default`, for its settings")
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else "a single value"
        raise InputError(f"{where}: it holds {kind}. Try: sections such as 'model:' and 'train:'")
    base = values.pop(_EXTENDS, None)
    if base is None:
        return values
    if base not in recipe_names():
        hint = nearest(str(base), recipe_names())
        raise InputError(f"{where}: extends = {_shown(base)} is no recipe{hint}. Try: {_LIST}")
    if base in extended:
        circle = " -> ".join((*extended, base))
        raise InputError(f"{where}: recipes extend each other ({circle}). Try: remove one extends")
    below = _resolved(f"recipe {base}", recipe_text(base), (*extended, base))
    return _merged(below, values, Settings)


def _merged(
    earlier: dict[str, Any], later: dict[str, Any], section: type[BaseModel]
) -> dict[str, Any]:
    """`earlier`, where `later` wins, section within section; other dictionaries are values."""
    merged = dict(earlier)
    for key, value in later.items():
        inner = _inner(section, key)
        if isinstance(value, dict) and inner is not None:
            before = merged.get(key) or {}
            if not isinstance(before, dict):
                continue  # validation reports what is wrong with the file
            value = _merged(before, value, inner)
        merged[key] = value
    return merged


def dump_settings(settings: Settings) -> str:
    """The settings as YAML, every key included."""
    return _yaml(settings.model_dump(mode="json"))


def describe_settings(settings: Section, indent: str = "") -> str:
    """The settings as YAML, every key included, each below its description."""
    lines = []
    for key, field in type(settings).model_fields.items():
        value = getattr(settings, key)
        words = textwrap.wrap(field.description or "", 98 - len(indent))
        lines += [f"{indent}# {line}" for line in words]
        if isinstance(value, Section):
            lines += [f"{indent}{key}:", describe_settings(value, indent + "  ").rstrip("\n")]
        else:
            lines.append(textwrap.indent(_yaml({key: value}), indent).rstrip("\n"))
    return "\n".join(lines) + "\n"


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _read(config: str | Path) -> tuple[str, str]:
    path = Path(config)
    if path.suffix in {".yaml", ".yml"} or path.exists():
        return str(path), read_config(path)
    if str(config) in accelerate_names():
        raise InputError(
            f"recipe {config}: this is a file for `accelerate launch --config_file`, not a recipe."
            f" Try: {_LIST}"
        )
    return f"recipe {config}", recipe_text(str(config))


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Change `values` as one --set says."""
    key, separator, raw = override.partition("=")
    override = hide_keys(override)
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise InputError(f"--set {override}: expected section.key=value. Try: {_KEYS}")
    if not raw.strip():
        raise InputError(f"--set {override}: the value is missing. Try: {key}=null to unset it")
    try:
        value = parse_yaml(raw, override)
    except InputError:
        value = raw  # a sentence with a colon, say
    # YAML 1.1 reads 1e-5 as a string; a person who types it means the number.
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+e[-+]?[0-9]+", value, re.IGNORECASE):
        with suppress(ValueError):
            value = float(value)
    place = values
    for part in parts[:-1]:
        if place.get(part) is None:
            place[part] = {}
        place = place[part]
        if not isinstance(place, dict):
            raise InputError(f"--set {override}: '{part}' is not a section. Try: {_KEYS}")
    before, section = place.get(parts[-1]), _section_class(parts)
    if section and isinstance(before, dict) and isinstance(value, dict):
        value = _merged(before, value, section)
    place[parts[-1]] = value


def _explain(error: ValidationError) -> str:
    """The first validation error as one line: key, what is wrong, and the nearest right key."""
    first = error.errors()[0]
    path = [part for part in first["loc"] if isinstance(part, str)]
    key = ".".join(path) or "settings"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if not path and first["loc"]:
        return f"the key {_shown(first['loc'][0])} is not a word. Try: a name of a section{more}"
    if first["type"] == "extra_forbidden":
        section = _section_class(path[:-1])
        known = list(section.model_fields) if section else []
        hint = nearest(path[-1], known)
        if not hint:
            elsewhere = [k for k in _all_keys() if k.endswith("." + path[-1])]
            close = elsewhere or difflib.get_close_matches(key, _all_keys(), n=1, cutoff=0.4)
            hint = f" (did you mean '{close[0]}'?)" if close else f"; known: {', '.join(known)}"
        return f"unknown key '{key[:80]}'{hint}{more}"
    message = first["msg"].removeprefix("Value error, ")
    value = first.get("input")
    # A section's own check names the settings that do not go together.
    if not path or (isinstance(value, dict) and first["type"] == "value_error"):
        return message + more
    if _section_class(path) is not None:
        message = "expected a section, with keys of its own"
    elif first["type"] == "list_type":
        message = f"expected a list. Try: {key}=[A,B], even for one"
    elif first["type"] == "string_type":
        message = "expected a text. Try: quotes that YAML sees, as in --set KEY='\"1\"'"
    hint = ""
    if first["type"] == "literal_error" and isinstance(value, str):
        hint = nearest(
            value,
            [v.strip("' ") for v in str(first["ctx"]["expected"]).replace(" or ", ",").split(",")],
        )
    # An address may hold what must not be shown, and a key may stand where its variable belongs.
    secret = ("base_url", "server_base_url", "api_key_env")
    shown = key if path[-1] in secret else f"{key} = {_shown(value)}"
    return f"{shown}: {message}{hint}{more}"


def _shown(value: Any) -> str:
    """A value in an error: short, and without what looks like a key."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    return hide_keys(short.repr(value))


def _inner(section: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The class of the section below `key`; None for a plain setting."""
    field = section.model_fields.get(key)
    kind = field.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _section_class(path: list[str]) -> type[BaseModel] | None:
    current: type[BaseModel] | None = Settings
    for part in path:
        current = current and _inner(current, part)
    return current


def _all_keys(section: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name in section.model_fields:
        inner = _inner(section, name)
        keys += _all_keys(inner, f"{prefix}{name}.") if inner else [prefix + name]
    return keys
