"""Base and aligned model of a finished run on every benchmark whose file is in a folder.

    python -m bench.evidence benchmarks RUN --data-dir DIR [--limit N]
        [--limit-of mmlu=200,humaneval=20] [--leave-out 50,60] [--benchmarks a,b] [--judges a,b]

Prints the tables in Markdown, and writes RUN/evidence.json and every prompt, answer and verdict
into RUN/evidence. Answers are kept in RUN/eval/cache, capability benchmarks task by task, so that
the same command resumes after an interruption with the same figures. None of the prompts is in the
package; `safesteer benchmarks --data-dir DIR` lists the files that are read.

--leave-out is for figures on prompts of no earlier sample. It skips requests that a sample of any
of these limits holds, in whatever file, and takes those test prompts of our own sets that the run
did not use (see `unseen`); capability benchmarks are not changed. It writes RUN/untouched.json and
RUN/untouched.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.command_line import names
from bench.evidence.unseen import seen_texts, unseen, with_files
from bench.inputs import OWN
from bench.tables import table_head, table_row
from safesteer.config.settings import EvaluateSettings
from safesteer.errors import InputError
from safesteer.evaluate.benchmarks import load_benchmarks
from safesteer.evaluate.benchmarks.capability import check_requirements
from safesteer.evaluate.benchmarks.sources import Loaded
from safesteer.evaluate.drift import measure_drift
from safesteer.evaluate.paired import add_paired_changes
from safesteer.evaluate.suite import Suite
from safesteer.events import Reporter
from safesteer.files import write_json, write_jsonl
from safesteer.runs.artifacts import RunArtifacts
from safesteer.runs.directory import RunDirectory
from safesteer.runs.system import versions

DRIFT_PROMPTS = 64
LONGEST_PROMPT = 600  # characters, of the harmless prompts that drift is measured on


class Lines(Reporter):
    """Progress on stderr, so that stdout holds the tables alone."""

    def stage(self, name: str, detail: str = "") -> None:
        print(f"{name}: {detail}", file=sys.__stderr__, flush=True)

    def note(self, text: str) -> None:
        print(f"note: {text}", file=sys.__stderr__, flush=True)

    def progress(self, what: str, done: int, total: int) -> None:
        print(f"\r  {what} {done}/{total}", end="" if done < total else "\n", file=sys.__stderr__)


def available(settings: EvaluateSettings, wanted: list[str], reporter: Reporter) -> list[str]:
    """The benchmarks whose files exist and whose requirements are met; the rest is reported."""
    found = []
    for entry in with_files(settings):
        if wanted and entry.name not in wanted:
            continue
        if entry.harness is not None:
            try:
                check_requirements(load_benchmarks([entry.name], settings, {})[0], settings)
            except InputError as error:
                reporter.note(str(error))
                continue
        found.append(entry.name)
    if not found:
        raise InputError(f"no file of a benchmark in {settings.data_dir}. Try: another --data-dir")
    return found


def measure(
    finished: RunArtifacts,
    limits: dict[str, int | None],
    only: Callable[[Loaded, int | None], Loaded] | None,
    folder: Path,
    reporter: Reporter,
) -> dict[str, Any]:
    """Ask base and aligned model, judge their answers, and measure drift on Alpaca's prompts.

    Args:
        finished: the run; `evaluate.limit` of its settings is changed.
        limits: {benchmark: prompts}.
        only: chooses a benchmark's prompts, given all of its file and the limit.
        folder: where every prompt, answer and verdict is written.
        reporter: receives progress.

    Returns:
        {"base": {benchmark: entry}, "aligned": ...}; the aligned one's entries have `versus_base`.
    """
    settings = finished.settings
    cache = finished.run.path / "eval" / "cache"
    variants = [finished.variant("aligned"), finished.variant("base")]
    found: dict[str, Any] = {"base": {}, "aligned": {}}
    rows: dict[str, Any] = {"base": {}, "aligned": {}}
    alpaca = []
    for limit in dict.fromkeys(limits.values()):
        settings.evaluate.limit = None if only else limit
        asked = [name for name, own in limits.items() if own == limit]
        suite = Suite.plan(asked, settings, finished.prompts, cache)
        settings.evaluate.limit = limit
        if only:
            chosen = [only(loaded, limit) for loaded in suite.benchmarks]
            suite.benchmarks = [b for b in chosen if b.items or b.benchmark.harness]
            for name in sorted({b.name for b in chosen} - {b.name for b in suite.benchmarks}):
                reporter.note(f"{name}: every prompt was in an earlier sample")
        alpaca += [i.prompt for b in suite.benchmarks if b.name == "alpaca" for i in b.items]
        results = suite.measure(reversed(variants), cache, reporter)
        for who, by_name in results.items():
            found[who] |= {name: result.to_json() for name, result in by_name.items()}
            for name, result in by_name.items():
                rows[who][name] = result.rows()
                write_jsonl(folder / f"{who}-{name}.jsonl", rows[who][name])
    add_paired_changes(found["aligned"], rows["aligned"], found["base"], rows["base"])
    harmless = [prompt.messages for prompt in alpaca if len(prompt.text) < LONGEST_PROMPT]
    if harmless:
        found["aligned"] |= measure_drift(
            variants[0].model,
            variants[0].runner,
            harmless[:DRIFT_PROMPTS],
            max_new_tokens=settings.evaluate.max_new_tokens,
            progress=lambda done, total: reporter.progress("drift", done, total),
        ).to_json()
    return found


def markdown(found: dict[str, Any]) -> str:
    """One table per kind of benchmark: base, aligned, and the difference on the same prompts."""
    lines = []
    titles = {
        "safety": "Harmful requests answered, lower is better",
        "over_refusal": "Harmless requests refused, lower is better",
        "capability": "Capability, higher is better",
    }
    for kind, title in titles.items():
        both = [n for n, e in found["aligned"].items() if e["kind"] == kind and n in found["base"]]
        if not both:
            continue
        lines.append(table_head(title, "base", "aligned", "on the same prompts"))
        for name in both:
            before, after = found["base"][name], found["aligned"][name]
            versus = after.get("versus_base", {}).get("words", "")
            other = ": refused" * (kind == "safety" and after["metric"] == "refusal_rate")
            lines.append(table_row(name + other, _cell(before), _cell(after), versus))
        lines.append("")
    for name in ("agreement", "divergence"):
        if name in found["aligned"]:
            entry = found["aligned"][name]
            low, high = entry["ci95"]
            lines.append(
                f"{entry['metric']}: {entry['value']:.4f} ({low:.4f} to {high:.4f}),"
                f" {entry['n']} prompts."
            )
    return "\n".join(lines)


def _cell(entry: dict[str, Any]) -> str:
    if entry["value"] is None:
        return "no verdict"
    low, high = entry["ci95"]
    shares = [f"{entry['value']:.1%} ({low:.0%}-{high:.0%}, n {entry['n']})"]
    shares += [
        f"{judge}: {other['value']:.1%}"
        + f", {other['no_verdict']} without" * bool(other["no_verdict"])
        for judge, other in entry.get("judges", {}).items()
        if judge != entry["judge"] and other["value"] is not None
    ]
    return "<br>".join(shares)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run_folder", metavar="RUN")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--limit", type=int, help="prompts per benchmark, evenly spaced")
    parser.add_argument("--limit-of", default="", help="other limits: NAME=N,NAME=N")
    parser.add_argument("--leave-out", default="", help="skip the samples of these limits")
    parser.add_argument(
        "--max-new-tokens", type=int, help="of a judged answer; as the run if unset"
    )
    parser.add_argument("--benchmarks", default="", help="only these, separated by commas")
    parser.add_argument("--judges", default="", help="separated by commas; as the run if unset")
    parser.add_argument("--allow-code-execution", action="store_true", help="for humaneval")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the tables and write the results into the run."""
    reporter = Lines()
    finished = RunArtifacts(RunDirectory.load(arguments.run_folder), reporter)
    chosen, of_run = finished.settings.evaluate, finished.settings.evaluate.model_copy()
    chosen.data_dir = arguments.data_dir
    chosen.limit = arguments.limit
    chosen.max_new_tokens = arguments.max_new_tokens or chosen.max_new_tokens
    chosen.allow_code_execution = arguments.allow_code_execution
    chosen.judges = names(arguments.judges) or chosen.judges
    wanted, leave_out = names(arguments.benchmarks), names(arguments.leave_out)
    asked = [name for name in OWN if leave_out and (not wanted or name in wanted)]
    if not wanted or set(wanted) - set(asked):
        asked += available(chosen, wanted, reporter)
    of_some = dict(part.split("=") for part in names(arguments.limit_of))
    limits = {name: int(of_some[name]) if name in of_some else chosen.limit for name in asked}
    only = None
    if leave_out:
        seen = seen_texts(chosen, [int(limit) for limit in leave_out])
        only = partial(unseen, seen=seen, settings=of_run)
    folder = finished.run.path / ("untouched" if leave_out else "evidence")
    found = measure(finished, limits, only, folder, reporter)
    settings: dict[str, Any] = {
        "seed": finished.settings.seed,
        "limit": arguments.limit,
        "max_new_tokens": chosen.max_new_tokens,
        "versions": versions(),
    }
    if leave_out:
        settings["leave_out"] = leave_out
    path = folder.with_suffix(".json")
    write_json(path, {**settings, "judges": chosen.judges, "benchmarks": found})
    print(markdown(found))
    print(f"\n{path}", file=sys.__stderr__)
