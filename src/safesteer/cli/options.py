"""Options that commands share; those for settings get type, default and help from the settings.

A command decorated with `with_settings` gets a parameter per row of `SETTINGS`, and receives what
was given as one `GivenSettings`.
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
# Options that name a file if there is one of that name, and something else otherwise.
FILES = {"--chat-template", "--harmful", "--harmless", "--borderline"}
FOLDERS = {"--data-dir"}
LISTS = {"--benchmarks", "--judges", "--report-to"}
# What `load_model` and `load_prompts` need, for the commands that do no more than that.
MODEL = (
    "--seed",
    "--revision",
    "--dtype",
    "--quantization",
    "--device",
    "--chat-template",
    "--trust-remote-code",
)
PANEL = "Settings (defaults; a recipe may have others)"

Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show tracebacks and the messages of libraries.")
]
RunOrModel = Annotated[
    str,
    typer.Argument(
        metavar="RUN_OR_MODEL",
        help="Folder of a run; or a hub id, folder, .gguf file, smollm2-135m.",
    ),
]
OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output-dir",
        "-o",
        metavar="RUN",
        help="Folder of the run.",
        show_default="safesteer-runs/NAME OF THE MODEL",
    ),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--resume/--fresh", help="Keep what is finished in RUN, or delete it and start again."
    ),
]
Base = Annotated[bool, typer.Option("--base", help="The model before training.")]
TeacherFlag = Annotated[bool, typer.Option("--teacher", help="The safety teacher of the run.")]

MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Length of an answer, at most.")
]
Temperature = Annotated[
    float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token each time.")
]


def which_model(base: bool, teacher: bool) -> str:
    """The model of a run that --base and --teacher ask for."""
    if base and teacher:
        raise InputError("--base and --teacher exclude each other; give one of them")
    return "base" if base else "teacher" if teacher else "aligned"


@dataclass(frozen=True)
class GivenSettings:
    """What the command line says about the settings; the arguments of `load_settings`.

    Attributes:
        config: recipe or file.
        overrides: ``section.key=value``, which win over everything.
        sections: the direct options, by section.
    """

    config: str | None = None
    overrides: list[str] = field(default_factory=list)
    sections: dict[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.config or self.overrides or self.sections)

    def arguments(self) -> dict[str, Any]:
        """Keywords of `safesteer.runs.target.find_target`."""
        return {"config": self.config, "overrides": self.overrides, "sections": self.sections}


def with_settings(
    command: Callable[..., None], names: tuple[str, ...] = tuple(SETTINGS)
) -> Callable[..., None]:
    """Replace the parameter `settings` of a command by --config, --set and the options `names`."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.name != "settings"]
    added = [
        _parameter("config", str | None, None, _CONFIG),
        _parameter("set_", list[str], (), _SET),
    ]
    added += [_setting(name) for name in names]
    parameters = [*own, *added]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        config, overrides = values.pop("config"), values.pop("set_")
        sections: dict[str, Any] = {}
        for name in names:
            value = values.pop(_variable(name))
            if value is not None:
                _put(sections, name, value)
        command(**values, settings=GivenSettings(config, list(overrides or ()), sections))

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def with_model_settings(command: Callable[..., None]) -> Callable[..., None]:
    """As `with_settings`, with the options that concern loading a model alone."""
    return with_settings(command, MODEL)


_CONFIG = typer.Option(
    "--config",
    "-c",
    metavar="RECIPE|FILE",
    help="Recipe or YAML file to start from.",
    show_default="the model's recipe if there is one",
    rich_help_panel=PANEL,
)
_SET = typer.Option(
    "--set",
    metavar="SECTION.KEY=VALUE",
    help="Set any key of `safesteer recipes show default --all`; wins over all else. Repeatable.",
    show_default=False,
    rich_help_panel=PANEL,
)


def _parameter(name: str, type_: Any, default: Any, option: Any) -> inspect.Parameter:
    annotation = Annotated[type_, option]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default or None, annotation=annotation
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
    shown = _shown(info.get_default(call_default_factory=True))
    # The first sentence; the others are in `safesteer recipes show NAME --all`.
    help_ = re.split(r"(?<=\.)\s", info.description or "", maxsplit=1)[0]
    option = typer.Option(
        name,
        metavar=_metavar(name, choices),
        help=help_,
        show_default=shown or False,
        rich_help_panel=PANEL,
    )
    return _parameter(_variable(name), type_ | None, None, option)


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
    return "" if default is None else str(default)


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


def _put(sections: dict[str, Any], name: str, value: Any) -> None:
    section, _, key = SETTINGS[name].rpartition(".")
    if name in FILES | FOLDERS and os.path.exists(value):
        value = os.path.abspath(value)  # the run may be continued from another folder
    if name in LISTS:
        value = [part.strip() for part in value.split(",") if part.strip()]
    if section:
        sections.setdefault(section, {})[key] = value
    else:
        sections[key] = value
