"""``safesteer``: the commands, and what each kind of failure looks like to the person who typed.

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
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from types import FrameType
from typing import Annotated, NoReturn

import typer

from safesteer import __version__, distributed
from safesteer.cli import (
    benchmarks,
    chat,
    compare,
    direction,
    doctor,
    evaluate,
    export,
    generate,
    recipes,
    report,
    run,
    tokens,
    train,
)
from safesteer.cli.silence import silence_libraries
from safesteer.errors import SafeSteerError, nearest

COMPLETION = "_SAFESTEER_COMPLETE"  # set by the script of `safesteer --show-completion`
# Commands that train, for which several processes work together; others are the main one's alone.
TOGETHER = {"run", "train"}
RESUMABLE = {"run", "direction", "tokens", "train", "eval", "report"}

app = typer.Typer(
    name="safesteer",
    help="Make an open-weight chat model safe with its own refusal direction.",
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
app.command("direction")(direction.direction)
app.command("tokens")(tokens.tokens)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("report")(report.report)
app.command("compare")(compare.compare)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("export")(export.export)
app.command("recipes")(recipes.recipes)
app.command("benchmarks")(benchmarks.benchmarks)
app.command("doctor")(doctor.doctor)


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
    """Run the command that was typed, and end the process with its exit code."""
    code = main()
    if distributed.count() == 1:
        sys.exit(code)
    # What FSDP wrapped keeps gloo's threads; an interpreter that is taken down while one of them
    # lets go of a tensor aborts (SIGABRT), and the launcher then ends the other processes.
    try:
        distributed.linger()
        with suppress(SystemExit):
            sys.exit(code)  # which trackers hook into, to know how it ended
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
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
    if COMPLETION in os.environ:  # the shell asks what could be typed next; typer answers
        return int(command.main(given, prog_name="safesteer", standalone_mode=False) or 0)
    try:
        with (
            nullcontext() if joint else distributed.alone(),
            command.make_context("safesteer", given) as context,
        ):
            command.invoke(context)
        sys.stdout.flush()
        return 0
    except typer.Exit as done:
        return done.exit_code
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        _end(_interrupted(given))
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        message, code = _explain(error, command)
        _end(message)
        return code


def _explain(error: Exception, command: object) -> tuple[str, int]:
    """One line for the screen, and the exit code."""
    from safesteer.files import is_disk_full, write_error

    if isinstance(error, OSError) and is_disk_full(error):
        error = write_error(error.filename or "a file", error)
    if isinstance(error, SafeSteerError):
        return str(error), error.exit_code
    if hasattr(error, "format_message"):  # typer's own: unknown command or option, wrong value
        message = error.format_message().rstrip(".?")
        if message.startswith("No such command") and "mean" not in message:
            typed = message.partition("'")[2].rstrip("'")  # older typer names no nearest one
            message += nearest(typed, getattr(command, "commands", ()))
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "safesteer"
        end = "?" if "Did you mean" in message else "."
        return f"{message}{end} See `{path} --help`.", getattr(error, "exit_code", 2)
    name = type(error).__name__
    return f"safesteer failed: {name}: {error} (run again with --debug for the traceback)", 1


def _interrupted(arguments: list[str]) -> str:
    if not arguments or arguments[0] not in RESUMABLE:
        return "interrupted"
    if distributed.count() > 1:  # by the launcher, which ends all processes when one has ended
        return "interrupted, or another process has ended; the same command goes on with the run"
    # --fresh would throw away what there is to go on with.
    again = [argument for argument in arguments if argument != "--fresh"]
    return f"interrupted; go on with: {shlex.join(['safesteer', *again])}"


def _end(message: str) -> None:
    """Say why this ends; of several processes the first one to fail speaks."""
    if distributed.count() > 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, while we speak
    if distributed.first_to_fail():
        _say(message)


def _say(message: str) -> None:
    print(" ".join(message.split()), file=sys.stderr)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
