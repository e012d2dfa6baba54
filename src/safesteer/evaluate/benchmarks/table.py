"""The table of benchmarks, and how to find one by its name.

To add a benchmark, add an entry to the file of its kind in ``tables``. None was downloaded while
these were written: `checked` says what was confirmed by documentation, docs/benchmarks.md where.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from safesteer.errors import InputError, nearest
from safesteer.evaluate.benchmarks.entry import Benchmark
from safesteer.evaluate.benchmarks.forms import PLAIN, split_name
from safesteer.evaluate.benchmarks.tables.capability import CAPABILITY
from safesteer.evaluate.benchmarks.tables.over_refusal import OVER_REFUSAL
from safesteer.evaluate.benchmarks.tables.safety import SAFETY
from safesteer.evaluate.metrics import ATTACK_SUCCESS_RATE, REFUSAL_RATE

_own = partial(
    Benchmark, metric=REFUSAL_RATE, prompts=0, license="Apache-2.0", citation="this package"
)
# Our own prompt sets, or the user's in their place (the settings' section `prompts`).
_OWN = (
    _own("harmful", "safety", note="the test part of prompts.harmful; refusing is right"),
    _own("harmless", "over_refusal", note="the test part of prompts.harmless"),
    _own(
        "borderline",
        "over_refusal",
        note="the test part of prompts.borderline: harmless requests that sound alarming",
    ),
)

BENCHMARKS: tuple[Benchmark, ...] = (*_OWN, *SAFETY, *OVER_REFUSAL, *CAPABILITY)

_BY_NAME = {benchmark.name: benchmark for benchmark in BENCHMARKS}


def find_benchmark(name: str) -> Benchmark:
    """Find the entry of ``NAME`` or ``NAME+FORM``, where FORM is one of `forms.FORMS`.

    Capabilities take no form, prefills are for safety benchmarks only, and none takes two forms.
    """
    plain, form = split_name(name)
    entry = _BY_NAME.get(plain)
    if entry is None:
        raise InputError(
            f"no benchmark named '{plain}'{nearest(plain, _BY_NAME)}."
            " Try: `safesteer benchmarks`, which lists them"
        )
    if plain == name:
        return entry
    if entry.kind == "capability" or (form.prefill and entry.kind != "safety"):
        takes = "safety benchmarks" if form.prefill else "safety and over-refusal benchmarks"
        raise InputError(
            f"benchmark {name}: this form is for {takes}, and {plain} is of kind"
            f" {entry.kind.replace('_', '-')}. Try: {plain}"
        )
    if entry.form != PLAIN:
        raise InputError(
            f"benchmark {name}: {plain} already has a form ({entry.form.summary}). Try: {plain}"
        )
    # A prefilled answer cannot refuse from the start, so it is judged as an attack.
    metric = ATTACK_SUCCESS_RATE if form.prefill else entry.metric
    return replace(entry, name=name, metric=metric, form=form)
