"""Judge a finished run's base and aligned model by every benchmark whose file is at hand.

    python bench/evidence.py RUN --data-dir DIR [--limit N] [--limit-of mmlu=200,humaneval=20]
        [--leave-out 50,60]

Writes RUN/evidence.json, every prompt, answer and verdict into RUN/evidence/, and prints the tables
in Markdown, for docs/results.md. What was answered is kept in RUN/eval/cache, capability benchmarks
task by task, so that the same command goes on after an interruption and ends with the same figures.
None of the prompts is in the package. `safesteer benchmarks --data-dir DIR` says which files are
looked for.

--leave-out is for figures of prompts touched once: requests that a sample of any of these limits
holds, in whatever file, are not asked, and of our own sets those test prompts are that the run has
left over (bench/untouched.py); questions of capability benchmarks are asked as without it. It
writes RUN/untouched.json and RUN/untouched.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from untouched import OWN, seen_texts, untouched, with_files

from safesteer.errors import InputError
from safesteer.evaluate.benchmarks import load_benchmarks
from safesteer.evaluate.benchmarks.capability import check_requirements
from safesteer.evaluate.benchmarks.sources import Loaded
from safesteer.evaluate.drift import measure_drift
from safesteer.evaluate.suite import Suite
from safesteer.evaluate.versus import compare_with_base
from safesteer.events import Reporter
from safesteer.files import write_json, write_jsonl
from safesteer.pipeline.stages import Pipeline
from safesteer.runs.directory import RunDirectory
from safesteer.runs.system import versions

DRIFT_PROMPTS = 64
LONGEST_PROMPT = 600  # characters, of the harmless prompts that drift is measured on


class Lines(Reporter):
    """Says on stderr what is under way, so that stdout holds the tables alone."""

    def stage(self, name: str, detail: str = "") -> None:
        print(f"{name}: {detail}", file=sys.__stderr__, flush=True)

    def note(self, text: str) -> None:
        print(f"note: {text}", file=sys.__stderr__, flush=True)

    def progress(self, what: str, done: int, total: int) -> None:
        print(f"\r  {what} {done}/{total}", end="" if done < total else "\n", file=sys.__stderr__)


def at_hand(pipeline: Pipeline, wanted: list[str], reporter: Reporter) -> list[str]:
    """The benchmarks whose files are there and whose requirements are met; notes on the rest."""
    settings = pipeline.settings.evaluate
    names = []
    for entry in with_files(settings):
        if wanted and entry.name not in wanted:
            continue
        if entry.harness is not None:
            try:
                check_requirements(load_benchmarks([entry.name], settings, {})[0], settings)
            except InputError as error:
                reporter.note(str(error))
                continue
        names.append(entry.name)
    if not names:
        raise InputError(f"no file of a benchmark was found below {settings.data_dir}")
    return names


def measure(
    pipeline: Pipeline,
    names: list[str],
    limits: dict[str, int],
    only: Callable[[Loaded, int | None], Loaded] | None,
    folder: Path,
    reporter: Reporter,
) -> dict[str, Any]:
    """{"base": {benchmark: entry}, "aligned": ...}; the aligned one's with `versus_base`.

    `only` chooses a benchmark's prompts from all of its file, given the limit.
    """
    settings = pipeline.settings
    variants = [pipeline.variant("aligned"), pipeline.variant("base")]
    found: dict[str, Any] = {"base": {}, "aligned": {}}
    rows: dict[str, Any] = {"base": {}, "aligned": {}}
    whole, alpaca = settings.evaluate.limit, []
    for limit in dict.fromkeys(limits.get(name, whole) for name in names):
        settings.evaluate.limit = None if only else limit
        asked = [name for name in names if limits.get(name, whole) == limit]
        suite = Suite.plan(asked, settings, pipeline.prompts, pipeline.cache_dir)
        settings.evaluate.limit = limit
        if only:
            chosen = [only(loaded, limit) for loaded in suite.benchmarks]
            suite.benchmarks = [b for b in chosen if b.items or b.benchmark.harness]
            for name in sorted({b.name for b in chosen} - {b.name for b in suite.benchmarks}):
                reporter.note(f"{name}: everything in it was asked before")
        alpaca += [i.prompt for b in suite.benchmarks if b.name == "alpaca" for i in b.items]
        results = suite.measure(reversed(variants), pipeline.cache_dir, reporter)
        for who, by_name in results.items():
            found[who] |= {name: result.to_json() for name, result in by_name.items()}
            for name, result in by_name.items():
                rows[who][name] = result.rows()
                write_jsonl(folder / f"{who}-{name}.jsonl", rows[who][name])
    compare_with_base(found["aligned"], rows["aligned"], found["base"], rows["base"])
    settings.evaluate.limit = whole
    harmless = [prompt.messages for prompt in alpaca if len(prompt.text) < LONGEST_PROMPT]
    if harmless:
        found["aligned"] |= measure_drift(
            variants[0].model,
            variants[0].runner,
            harmless[:DRIFT_PROMPTS],
            max_new_tokens=settings.evaluate.max_new_tokens,
            progress=lambda done, total: reporter.progress("drift", done, total),
        )
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
        names = [n for n, e in found["aligned"].items() if e["kind"] == kind and n in found["base"]]
        if not names:
            continue
        lines += [f"| {title} | base | aligned | on the same prompts |", "|---|---|---|---|"]
        for name in names:
            before, after = found["base"][name], found["aligned"][name]
            versus = after.get("versus_base", {}).get("words", "")
            other = ": refused" * (kind == "safety" and after["metric"] == "refusal_rate")
            lines.append(f"| {name}{other} | {_cell(before)} | {_cell(after)} | {versus} |")
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


def main() -> None:
    """Measure, print the tables and write RUN/evidence.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--limit", type=int, help="prompts per benchmark, evenly spaced")
    parser.add_argument("--limit-of", default="", help="other limits: NAME=N,NAME=N")
    parser.add_argument("--leave-out", default="", help="limits whose samples are not asked")
    parser.add_argument("--max-new-tokens", type=int, help="of a judged answer; the run's own")
    parser.add_argument("--benchmarks", default="", help="only these, separated by commas")
    parser.add_argument("--judges", default="", help="separated by commas; the run's own")
    parser.add_argument("--allow-code-execution", action="store_true", help="for humaneval")
    arguments = parser.parse_args()
    reporter = Lines()
    run = RunDirectory.load(arguments.run)
    chosen, of_run = run.settings.evaluate, run.settings.evaluate.model_copy()
    chosen.data_dir = arguments.data_dir
    chosen.limit = arguments.limit
    chosen.max_new_tokens = arguments.max_new_tokens or chosen.max_new_tokens
    chosen.allow_code_execution = arguments.allow_code_execution
    chosen.judges = _split(arguments.judges) or chosen.judges
    pipeline = Pipeline(run, reporter)
    try:
        wanted, leave_out = _split(arguments.benchmarks), _split(arguments.leave_out)
        own = [name for name in OWN if leave_out and (not wanted or name in wanted)]
        names = list(own)
        if not wanted or set(wanted) - set(own):
            names += at_hand(pipeline, wanted, reporter)
        limits = {
            name: int(n) for name, _, n in (p.partition("=") for p in _split(arguments.limit_of))
        }
        only = None
        if leave_out:
            seen = seen_texts(chosen, [int(limit) for limit in leave_out])
            only = partial(untouched, seen=seen, settings=of_run)
        place = Path(arguments.run) / ("untouched" if leave_out else "evidence")
        found = measure(pipeline, names, limits, only, place, reporter)
    except InputError as error:
        raise SystemExit(str(error)) from None
    settings: dict[str, Any] = {
        "seed": run.settings.seed,
        "limit": chosen.limit,
        "max_new_tokens": chosen.max_new_tokens,
        "versions": versions(),
    }
    if leave_out:
        settings["leave_out"] = leave_out
    path = place.with_suffix(".json")
    write_json(path, {**settings, "judges": chosen.judges, "benchmarks": found})
    print(markdown(found))
    print(f"\n{path}", file=sys.__stderr__)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    main()
