"""Options that commands share, and decorators that add options to a command.

`with_settings` replaces the parameter `settings` of a command by an option per row of `SETTINGS`,
with type, default and help of the settings.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic.fields import FieldInfo

from safesteer.config.settings import Settings
from safesteer.errors import InputError

# Option -> key of the settings, in the order of --help.
SETTINGS = {
    "--seed": "seed",
    "--revision": "model.revision",
    "--dtype": "model.dtype",
    "--quantization": "model.quantization",
    "--device": "model.device",
    "--chat-template": "model.chat_template",
    "--trust-remote-code": "model.trust_remote_code",
    "--harmful": "prompts.harmful",
    "--harmless": "prompts.harmless",
    "--borderline": "prompts.borderline",
    "--column": "prompts.column",
    "--direction-source": "direction.source",
    "--teacher-context": "teacher.context",
    "--token-method": "tokens.method",
    "--num-tokens": "tokens.num_tokens",
    "--divergence": "train.divergence",
    "--method": "train.method",
    "--max-steps": "train.max_steps",
    "--learning-rate": "train.learning_rate",
    "--anchor-share": "train.anchor_share",
    "--rollouts": "train.rollouts",
    "--limit": "evaluate.limit",
    "--max-new-tokens": "evaluate.max_new_tokens",
    "--benchmarks": "evaluate.benchmarks",
    "--judges": "evaluate.judges",
    "--data-dir": "evaluate.data_dir",
    "--allow-code-execution": "evaluate.allow_code_execution",
    "--report-to": "report_to",
}
# These name a file if one of that name exists, and something else otherwise.
FILES = {"--chat-template", "--harmful", "--harmless", "--borderline"}
FOLDERS = {"--data-dir"}
LISTS = {"--benchmarks", "--judges", "--report-to"}
# Enough for the commands that only load a model.
MODEL = tuple(name for name, key in SETTINGS.items() if key.startswith(("seed", "model.")))
PANEL = "Settings (defaults of the recipe `default`; another recipe may change them)"

Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
RunOrModel = Annotated[
    str,
    typer.Argument(
        metavar="RUN_OR_MODEL",
        help="Folder of a run, or a model: a hub id, a folder, a .gguf file or smollm2-135m.",
    ),
]


def path(text: str) -> Path:
    """A path from the command line; an empty one, as of an unset variable, is no folder."""
    if not text.strip():
        raise typer.BadParameter("the path is empty")
    return Path(text)


OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output-dir",
        "-o",
        metavar="RUN",
        parser=path,
        help="Folder of the run.",
        show_default="safesteer-runs/MODEL",
    ),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--resume/--fresh", help="Keep the finished stages of RUN, or delete them and start over."
    ),
]
Base = Annotated[bool, typer.Option("--base", help="Take the run's base model.")]
TeacherOfRun = Annotated[bool, typer.Option("--teacher", help="Take the run's safety teacher.")]
AllowWorse = Annotated[
    bool,
    typer.Option(
        "--allow-worse",
        help="Accept an aligned model that refuses fewer harmful prompts than its base, or many"
        " more harmless ones.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")]
MaxNewTokens = Annotated[
    int,
    typer.Option("--max-new-tokens", min=1, max=10**6, help="Cut answers after this many tokens."),
]


def _temperature(value: float) -> float:
    if value and not 1e-3 <= value <= 100:  # also if it is no number
        raise typer.BadParameter(f"{value} is neither 0 nor from 0.001 to 100")
    return value


Temperature = Annotated[
    float,
    typer.Option(
        "--temperature",
        callback=_temperature,
        help="Sample at this temperature; 0 decodes greedily.",
    ),
]


@dataclass(frozen=True)
class GivenSettings:
    """Settings from the command line, as `load_settings` takes them."""

    config: str | None = None
    overrides: list[str] = field(default_factory=list)
    sections: dict[str, Any] = field(default_factory=dict)  # from options such as --seed

    def __bool__(self) -> bool:
        return bool(self.config or self.overrides or self.sections)

    def arguments(self) -> dict[str, Any]:
        """Keywords of `safesteer.runs.target.find_target`."""
        return vars(self)


def chosen_variant(base: bool, teacher: bool) -> str:
    """The variant of a run that --base and --teacher choose: the aligned model without them."""
    if base and teacher:
        raise InputError("--base and --teacher exclude each other. Try: one of them")
    return "base" if base else "teacher" if teacher else "aligned"


def with_settings(
    command: Callable[..., None], names: tuple[str, ...] = tuple(SETTINGS)
) -> Callable[..., None]:
    """Replace the parameter `settings` of a command by --config, --set and the options `names`."""
    options = [
        parameter("config", str | None, None, _CONFIG),
        parameter("set_", list[str], None, _SET),
        *map(_setting, names),
    ]

    def collect(config: str | None, set_: list[str] | None, **values: Any) -> GivenSettings:
        sections: dict[str, Any] = {}
        for name in names:
            value = values[_variable(name)]
            if value is None:
                continue
            if name in FILES | FOLDERS and os.path.exists(value):
                value = os.path.abspath(value)  # the run may be resumed from another folder
            if name in LISTS:
                value = [part.strip() for part in value.split(",") if part.strip()]
            section, _, key = SETTINGS[name].rpartition(".")
            (sections.setdefault(section, {}) if section else sections)[key] = value
        return GivenSettings(config, list(set_ or ()), sections)

    return replace_parameter(command, "settings", options, collect)


with_model_settings = functools.partial(with_settings, names=MODEL)


def with_debug(command: Callable[..., None]) -> Callable[..., None]:
    """Add --debug to a command, for its help: `main` itself reads it, before the command runs."""
    option = typer.Option("--debug", help="Show tracebacks and the messages of libraries.")
    return replace_parameter(
        command, "", [parameter("debug", bool, False, option)], lambda debug: None
    )


def replace_parameter(
    command: Callable[..., None],
    name: str,
    options: list[inspect.Parameter],
    collect: Callable[..., Any],
) -> Callable[..., None]:
    """A command that takes `options` and passes what `collect` makes of them as `name`."""
    signature = inspect.signature(command, eval_str=True)
    kept = [p for p in signature.parameters.values() if p.name != name]
    parameters = [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in kept), *options]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        collected = collect(**{option.name: values.pop(option.name) for option in options})
        command(**values, **({name: collected} if name else {}))

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


_CONFIG = typer.Option(
    "--config",
    "-c",
    metavar="RECIPE|FILE",
    help="Start from this recipe or YAML file.",
    show_default="the recipe that names the model, else `default`",
    rich_help_panel=PANEL,
)
_SET = typer.Option(
    "--set",
    metavar="SECTION.KEY=VALUE",
    help="Set any key that `safesteer recipes show default --all` lists; wins over every other"
    " option. Repeatable.",
    show_default=False,
    rich_help_panel=PANEL,
)


def parameter(name: str, type_: Any, default: Any, option: Any) -> inspect.Parameter:
    """A parameter of a command: its name, type, default, and what typer knows of the option."""
    annotation = Annotated[type_, option]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _variable(option: str) -> str:
    return "setting_" + option.removeprefix("--").replace("-", "_")


def _setting(name: str) -> inspect.Parameter:
    key = SETTINGS[name]
    info = _field(key)
    choices = _choices(info.annotation)
    type_ = next(
        (t for t in (bool, int, float) if t in (info.annotation, *get_args(info.annotation))), str
    )
    # The first sentence only: `safesteer recipes show NAME --all` has the others.
    help_ = re.split(r"(?<=\.)\s", info.description or "", maxsplit=1)[0]
    option = typer.Option(
        name,
        metavar=_metavar(name, choices),
        help=help_,
        show_default=_shown(info.get_default(call_default_factory=True)),
        rich_help_panel=PANEL,
    )
    return parameter(_variable(name), type_ | None, None, option)


def _metavar(name: str, choices: list[str]) -> str | None:
    if name in FILES:
        return "FILE"
    if name in FOLDERS:
        return "DIR"
    if choices:
        return "|".join(choices)
    return "A,B" if name in LISTS else None


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, list):
        return ",".join(default) or "none"
    return "null" if default is None else str(default)


def _field(key: str) -> FieldInfo:
    section, _, name = key.rpartition(".")
    model = Settings.model_fields[section].annotation if section else Settings
    return model.model_fields[name]  # type: ignore[union-attr]


def _choices(annotation: Any) -> list[str]:
    """The values of a Literal, or of a list of one."""
    arguments = get_args(annotation)
    if arguments and all(isinstance(value, str) for value in arguments):
        return list(arguments)
    return [choice for argument in arguments for choice in _choices(argument)]
