"""``safesteer``: the table of commands, and failures as exit codes and one-line messages.

Exit codes: 0 done, 1 the work failed, 2 the input is wrong, 130 interrupted. Errors are one line
on stderr; ``--debug`` adds the traceback.
"""

from __future__ import annotations

import atexit
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from types import FrameType
from typing import Annotated, NoReturn

import typer

from safesteer import __version__, distributed
from safesteer.cli import (
    benchmarks,
    chat,
    compare,
    doctor,
    evaluate,
    export,
    generate,
    recipes,
    report,
    run,
    stages,
    verify,
)
from safesteer.cli.options import with_debug
from safesteer.cli.silence import silence_libraries
from safesteer.errors import SafeSteerError, hide_keys, nearest, printable

COMPLETION = "_SAFESTEER_COMPLETE"  # set by the script of `safesteer --show-completion`
# Commands on which several processes work together; the main one runs all others alone.
TOGETHER = {"run", "train"}
RESUMABLE = {"run", "direction", "tokens", "train", "eval", "report", "generate"}

app = typer.Typer(
    name="safesteer",
    help="Make an open-weight chat model refuse harmful requests, using its own refusal direction."
    " Start with: safesteer run MODEL",
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
# Heading of the list of commands -> the commands below it.
COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Align a model": {
        "run": run.run,
        "direction": stages.direction,
        "tokens": stages.tokens,
        "train": stages.train,
    },
    "Measure": {"eval": evaluate.evaluate, "report": report.report, "compare": compare.compare},
    "Use the result": {
        "generate": generate.generate,
        "chat": chat.chat,
        "export": export.export,
        "verify": verify.verify,
    },
    "Look things up": {
        "recipes": recipes.recipes,
        "benchmarks": benchmarks.benchmarks,
        "doctor": doctor.doctor,
    },
}
for _heading, _commands in COMMANDS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_heading)(with_debug(_command))


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"safesteer {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def program() -> NoReturn:
    """Run the command line, and end the process with its exit code."""
    code = main()
    if distributed.world_size() == 1:
        sys.exit(code)
    # FSDP keeps gloo's threads alive. If the interpreter shuts down while one of them frees a
    # tensor, the process aborts (SIGABRT), and the launcher then kills the other processes.
    try:
        distributed.linger()
        with suppress(SystemExit):
            sys.exit(code)  # trackers hook into this to record the outcome
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command with these words, or those of the process; return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    joint = not given or given[0] in TOGETHER
    if not distributed.is_main():
        if not joint:
            return 0
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    silence_libraries(debug)
    signal.signal(signal.SIGTERM, _interrupt)
    command = typer.main.get_command(app)
    if COMPLETION in os.environ:  # the shell asks for completions, which typer answers
        return int(command.main(given, prog_name="safesteer", standalone_mode=False) or 0)
    try:
        with (
            nullcontext() if joint else distributed.single_process(),
            command.make_context("safesteer", given) as context,
        ):
            command.invoke(context)
        sys.stdout.flush()
        return 0
    except typer.Exit as done:
        return done.exit_code
    except BrokenPipeError:  # the reader of our output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        _end(_interrupted(given))
        return 130
    except Exception as error:
        if debug:
            print(printable(traceback.format_exc()), end="", file=sys.stderr)
        message, code = _explain(error, command)
        _end(message)
        return code


def _explain(error: Exception, command: object) -> tuple[str, int]:
    """A message of one line, and the exit code."""
    from safesteer.files import is_disk_full, write_error

    if not isinstance(error, SafeSteerError) and is_disk_full(error):
        error = write_error(getattr(error, "filename", None) or "a file", error)
    if isinstance(error, SafeSteerError):
        return str(error), error.exit_code
    if hasattr(error, "format_message"):  # typer's own: unknown command or option, wrong value
        message = error.format_message().rstrip(".?")
        if message.startswith("No such command") and "mean" not in message:
            typed = message.partition("'")[2].rstrip("'")  # older typer suggests no command
            message += nearest(typed, getattr(command, "commands", ()))
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "safesteer"
        end = "?" if "Did you mean" in message else "."
        return f"{message}{end} Try: `{path} --help`", getattr(error, "exit_code", 2)
    name = type(error).__name__
    return f"safesteer failed with {name}: {error}. Try: --debug, for the traceback", 1


def _interrupted(arguments: list[str]) -> str:
    if not arguments or arguments[0] not in RESUMABLE:
        return "interrupted"
    if distributed.world_size() > 1:  # the launcher interrupts all processes when one has ended
        return "interrupted, or another process has ended. Resume with the same command"
    # --fresh would delete the stages to resume from.
    again = [argument for argument in arguments if argument != "--fresh"]
    return f"interrupted. Resume with: {shlex.join(['safesteer', *again])}"


def _end(message: str) -> None:
    """Print why the process ends; of several processes only the first to fail prints."""
    if distributed.world_size() > 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's would cut the message off
    if distributed.first_to_fail():
        print(printable(hide_keys(" ".join(message.split()))), file=sys.stderr)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
