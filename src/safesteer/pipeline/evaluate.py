"""Evaluate a run, one of its variants, or any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from safesteer.errors import InputError
from safesteer.evaluate.metrics import DRIFT
from safesteer.evaluate.paired import add_paired_changes
from safesteer.evaluate.stored import read_results, read_samples
from safesteer.evaluate.suite import Suite
from safesteer.events import Reporter
from safesteer.models.answer_cache import user_cache
from safesteer.pipeline.align import run_stages
from safesteer.pipeline.stages import cache_dir
from safesteer.prompts import PROMPT_SETS, load_prompt_sets
from safesteer.report.requirements import Requirement, check_measurable, check_measured
from safesteer.runs.artifacts import load_variants
from safesteer.runs.directory import RunDirectory
from safesteer.runs.stage import stages_to
from safesteer.runs.target import Target
from safesteer.runs.worse import worse_than_base


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation."""

    name: str  # what was evaluated: base, teacher, aligned, or model
    results: dict[str, dict[str, Any]]  # {variant: {benchmark: entry}}, of others too if known
    samples: dict[str, list[dict[str, Any]]]  # {prompt set: prompts, completions, verdicts}
    max_new_tokens: int
    missing: str = ""  # verdicts that judges failed to give, and why
    worse: str = ""  # how a run's aligned model is worse than its base

    def to_json(self) -> dict[str, Any]:
        """The content of the file that `safesteer eval --json` writes."""
        return {
            "model": self.name,
            "max_new_tokens": self.max_new_tokens,
            "benchmarks": self.results[self.name],
        }


def evaluate_target(
    target: Target,
    name: str = "aligned",
    *,
    changed: bool = False,
    benchmarks: Sequence[str] | None = None,
    required: Sequence[Requirement] = (),
    reporter: Reporter | None = None,
) -> Evaluation:
    """Evaluate the variant `name` of a run, or the model that `target` is.

    With unchanged settings the aligned model's evaluation is the run's own stage, and base and
    teacher are read from it. With changed settings, or before that stage, one variant is judged
    and the run stays as it is.

    Args:
        target: a run or a model.
        name: base, teacher or aligned, for a run.
        changed: whether the command line changes settings of the run.
        benchmarks: what to measure; None means our own prompt sets and the settings' benchmarks.
        required: requirements on the figures; what they name is measured too. A stored evaluation
            must have it.
    """
    settings = target.settings
    names = [*PROMPT_SETS, *settings.evaluate.benchmarks] if benchmarks is None else [*benchmarks]
    if target.is_run and not changed:
        if name == "aligned":
            check_measured(required, [*names, *DRIFT], f"the evaluation of {target.path}")
            run_stages(target, stages=stages_to("evaluate"), reporter=reporter)
        run = RunDirectory.load(target.path)
        if run.output_hashes("evaluate"):
            run.check_outputs("evaluate")
            stored = read_results(run.path)
            check_measured(required, list(stored[name]), f"the evaluation of {target.path}")
            return Evaluation(
                name,
                stored,
                read_samples(run.path).get(name, {}),
                run.settings.evaluate.max_new_tokens,
                worse=worse_than_base(stored) if name == "aligned" else "",
            )
    elif target.is_run:
        RunDirectory.load(target.path).check_outputs("evaluate")  # to compare with the base
    check_measurable(required)
    sets = load_prompt_sets(settings.prompts, settings.seed)
    asked = list(dict.fromkeys([*names, *(requirement.name for requirement in required)]))
    if not asked:
        raise InputError("no benchmark is named. Try: `safesteer benchmarks`, which lists them")
    kept = cache_dir(target.path) if target.is_run else user_cache()
    suite = Suite.plan(asked, settings, sets, kept)
    if name == "teacher" and all(b.benchmark.kind == "capability" for b in suite.benchmarks):
        raise InputError(
            f"benchmark {asked[0]}: capability is not measured for the teacher, which reads more"
            " than the question. Try: without --teacher"
        )
    suite.prepare()
    # A win rate compares with the base, which then has to answer too.
    contest = target.is_run and name == "aligned" and suite.comparer is not None
    names = ["base", name] if contest else [name]
    conversations = [item.prompt.messages for loaded in suite.benchmarks for item in loaded.items]
    variants = load_variants(target, names, reporter, conversations=conversations)
    measured = suite.measure(variants, kept, reporter)
    missing = suite.missing(measured)
    variant, results = list(measured.items())[-1]
    entries = {key: result.to_json() for key, result in results.items()}
    rows = {key: result.rows() for key, result in results.items()}
    if target.is_run and variant != "base":
        _compare_with_stored(target, entries, rows)
    return Evaluation(variant, {variant: entries}, rows, settings.evaluate.max_new_tokens, missing)


def _compare_with_stored(
    target: Target, entries: dict[str, dict[str, Any]], rows: dict[str, list[dict[str, Any]]]
) -> None:
    """Add ``versus_base`` to entries whose prompts the run's base has answered alike."""
    run = RunDirectory.load(target.path)
    if not run.output_hashes("evaluate", incomplete=True):
        return
    stored = read_results(run.path).get("base", {})
    samples = read_samples(run.path).get("base", {})
    mine, theirs = target.settings, run.settings
    if mine.model != theirs.model or (
        mine.evaluate.max_new_tokens != theirs.evaluate.max_new_tokens
    ):
        return
    add_paired_changes(entries, rows, stored, samples)
