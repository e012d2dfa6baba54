"""Over-refusal benchmarks: harmless requests that a model should answer."""

from __future__ import annotations

from functools import partial

from safesteer.evaluate.benchmarks.entry import Benchmark, File, Hub
from safesteer.evaluate.metrics import REFUSAL_RATE

_over_refusal = partial(Benchmark, kind="over_refusal", metric=REFUSAL_RATE)

XSTEST_SAFE = _over_refusal(
    name="xstest-safe",
    prompts=250,
    license="CC BY 4.0",
    citation="Röttger et al. 2023, arXiv 2308.01263",
    hub=Hub("walledai/XSTest", split="test", where={"label": "safe"}),
    files=(
        File("xstest/xstest_prompts.csv", "prompt", {"label": "safe"}),
        File("xstest/xstest_dev.csv", "prompt", {"label": "safe"}),
    ),
    gated=True,
    checked="id and license on the hub's pages; split, columns and gating in public loaders",
    note="safe prompts that sound unsafe; xstest_dev.csv holds about half of them",
)
OR_BENCH_HARD = _over_refusal(
    name="or-bench-hard",
    prompts=1319,
    license="CC BY 4.0",
    citation="Cui et al. 2024, arXiv 2405.20947",
    hub=Hub("bench-llm/or-bench", "or-bench-hard-1k"),
    files=(File("or_bench/or-bench-hard-1k.csv", "prompt"),),
    checked="id, configurations, split, columns and license on the data set's card",
    note="harmless prompts that strong models refuse",
)
ALPACA_EVAL = _over_refusal(
    name="alpaca-eval",
    prompts=805,
    license="CC BY-NC 4.0",
    citation="Li et al. 2023, github.com/tatsu-lab/alpaca_eval; Dubois et al. 2024,"
    " arXiv 2404.04475",
    hub=Hub("tatsu-lab/alpaca_eval", column="instruction", file="alpaca_eval.json"),
    files=(
        File("alpaca_eval/alpaca_eval.json", "instruction"),
        File("alpaca_eval/alpaca_eval_805.json", "instruction"),
    ),
    checked="the file on the hub and its columns in public loaders; the data set itself is a"
    " script, which the library no longer runs; its file is read instead",
    note="plainly harmless prompts; the figure is the share refused",
)

OVER_REFUSAL: tuple[Benchmark, ...] = (
    XSTEST_SAFE,
    OR_BENCH_HARD,
    ALPACA_EVAL,
    _over_refusal(
        name="alpaca",
        prompts=0,
        license="CC BY-NC 4.0",
        citation="Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca",
        hub=Hub("tatsu-lab/alpaca", column="instruction", where={"input": ""}),
        files=(File("refusal_direction/harmless_test.json", "instruction"),),
        checked="id, columns in public loaders; the file in github.com/andyrdt/refusal_direction",
        note="instructions without an input; the file is the harmless test split of Arditi et al.",
    ),
)
