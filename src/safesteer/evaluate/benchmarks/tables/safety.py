"""Safety benchmarks: harmful requests, plain or as attacks, that a model should refuse."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from safesteer.evaluate.benchmarks.entry import Benchmark, File, Hub
from safesteer.evaluate.benchmarks.forms import FORMS, PREFILL
from safesteer.evaluate.benchmarks.tables.over_refusal import OR_BENCH_HARD, XSTEST_SAFE
from safesteer.evaluate.metrics import ATTACK_SUCCESS_RATE

_safety = partial(Benchmark, kind="safety", metric=ATTACK_SUCCESS_RATE)

# Rows of PKU-SafeRLHF, and of HarmBench.
_BOTH_UNSAFE = {"is_response_0_safe": False, "is_response_1_safe": False}
_STANDARD = {"FunctionalCategory": "standard"}

_ADVBENCH = _safety(
    name="advbench",
    prompts=520,
    license="MIT",
    citation="Zou et al. 2023, arXiv 2307.15043",
    hub=Hub("walledai/AdvBench"),
    files=(
        File("advbench/advbench.csv", "goal"),
        File("advbench/harmful_behaviors.csv", "goal"),
        File("refusal_direction/advbench.json", "instruction"),
    ),
    judge="llama-guard-4",
    gated=True,
    checked="id, license and data file on the hub's pages; split, column, 520 rows and gating in"
    " public loaders, not on the card",
)

SAFETY: tuple[Benchmark, ...] = (
    _ADVBENCH,
    _safety(
        name="pku-saferlhf",
        prompts=0,
        license="CC BY-NC 4.0",
        citation="Ji et al. 2024, arXiv 2406.15513",
        hub=Hub("PKU-Alignment/PKU-SafeRLHF", "default", split="test", where=_BOTH_UNSAFE),
        files=(File("pku_saferlhf/test.jsonl", "prompt", _BOTH_UNSAFE),),
        judge="llama-guard-4",
        checked="id, license and files on the hub's pages; configuration, split and columns in"
        " public loaders; the number of prompts after filtering was not",
        note="test prompts whose two answers are both labeled unsafe, without duplicates; the"
        " SafeSteer paper does not say how it chose its prompts",
    ),
    _safety(
        name="harmbench",
        prompts=200,
        license="MIT",
        citation="Mazeika et al. 2024, arXiv 2402.04249",
        hub=Hub("walledai/HarmBench", "standard"),
        files=(
            File("harmbench_full/harmbench_behaviors_text_all.csv", "Behavior", _STANDARD),
            File("harmbench/harmbench_behaviors_text_all.csv", "Behavior", _STANDARD),
            File("refusal_direction/harmbench_test.json", "instruction"),
        ),
        judge="harmbench",
        gated=True,
        checked="id, configurations, license on the hub's pages; split, column and gating in public"
        " loaders; the columns of the CSV file in its readers",
        note="the standard behaviors: none with a context, none about copyright",
    ),
    _safety(
        name="jailbreakbench",
        prompts=100,
        license="MIT",
        citation="Chao et al. 2024, arXiv 2404.01318",
        hub=Hub("JailbreakBench/JBB-Behaviors", "behaviors", split="harmful", column="Goal"),
        files=(
            File("jailbreakbench/harmful-behaviors.csv", "Goal"),
            File("advbench/jailbreakbench.csv", "Goal"),
        ),
        judge="llama-guard-4",
        checked="id, configuration, splits, files, columns and license on the data set's card",
        note="the plain requests; its attacks are the benchmark `jailbreaks`",
    ),
    _safety(
        name="sorry-bench",
        prompts=440,
        license="own agreement",
        citation="Xie et al. 2024, arXiv 2406.14598",
        hub=Hub("sorry-bench/sorry-bench-202503", column="turns", where={"prompt_style": "base"}),
        files=(File("sorry_bench/question.jsonl", "turns"),),
        gated=True,
        checked="id, split, columns and gating in public loaders and in PyRIT's documentation; the"
        " card of the version of 2024 says 450 prompts, public code 440 for this one",
        note="requests without linguistic mutations; its authors score with their own judge",
    ),
    _safety(
        name="harmfulqa",
        prompts=1960,
        license="Apache-2.0",
        citation="Bhardwaj and Poria 2023, arXiv 2308.09662",
        hub=Hub("declare-lab/HarmfulQA", column="question"),
        files=(File("harmfulqa/data_for_hub.json", "question"),),
        judge="llama-guard-4",
        checked="id, file, license and 1,960 questions on the hub's pages; split and column in a"
        " public loader",
    ),
    _safety(
        name="alert",
        prompts=0,
        license="CC BY-NC-SA 4.0",
        citation="Tedeschi et al. 2024, arXiv 2404.08676",
        hub=Hub("Babelscape/ALERT", "alert", split="test"),
        files=(File("alert/alert.jsonl", "prompt"),),
        judge="llama-guard-4",
        checked="id, configurations, split, file, columns and license on the data set's card; not"
        " its number of rows",
        note="more than ten thousand prompts; the SafeSteer paper uses 2,500 (--limit 2500 gives a"
        " different sample)",
    ),
    _safety(
        name="strongreject",
        prompts=313,
        license="MIT",
        citation="Souly et al. 2024, arXiv 2402.10260",
        hub=Hub("walledai/StrongREJECT"),
        files=(
            File("strongreject/strongreject_dataset.csv", "forbidden_prompt"),
            File("advbench/strongreject.csv", "forbidden_prompt"),
        ),
        judge="strongreject",
        gated=True,
        checked="id and license on the hub's pages; split, columns, 313 rows and gating in public"
        " loaders",
    ),
    _safety(
        name="do-not-answer",
        prompts=939,
        license="CC BY-NC-SA 4.0",
        citation="Wang et al. 2023, arXiv 2308.13387",
        hub=Hub("LibrAI/do-not-answer", column="question"),
        files=(File("do_not_answer/data_en.csv", "question"),),
        judge="llama-guard-4",
        checked="id, columns and license on the hub's pages; 939 rows on a copy's card",
    ),
    _safety(
        name="maliciousinstruct",
        prompts=100,
        license="CC BY-SA 4.0",
        citation="Huang et al. 2023, arXiv 2310.06987",
        hub=Hub("walledai/MaliciousInstruct"),
        files=(File("maliciousinstruct/malicious_instruct.jsonl", "prompt"),),
        judge="llama-guard-4",
        checked="id, split, column, license and 100 rows in public loaders and lists, not on the"
        " card",
    ),
    _safety(
        name="refusal-direction",
        prompts=39,
        license="Apache-2.0",
        citation="Arditi et al. 2024, arXiv 2406.11717",
        files=(File("refusal_direction/harmful_val.json", "instruction"),),
        checked="the file of github.com/andyrdt/refusal_direction, dataset/splits",
        note="their harmful validation split, drawn from several sets above, whose licenses apply;"
        " no hub data set",
    ),
    replace(
        XSTEST_SAFE,
        name="xstest-unsafe",
        kind="safety",
        metric=ATTACK_SUCCESS_RATE,
        prompts=200,
        hub=Hub("walledai/XSTest", split="test", where={"label": "unsafe"}),
        files=tuple(replace(file, where={"label": "unsafe"}) for file in XSTEST_SAFE.files),
        note="unsafe prompts, the counterpart of xstest-safe",
    ),
    replace(
        OR_BENCH_HARD,
        name="or-bench-toxic",
        kind="safety",
        metric=ATTACK_SUCCESS_RATE,
        prompts=655,
        hub=Hub("bench-llm/or-bench", "or-bench-toxic"),
        files=(File("or_bench/or-bench-toxic.csv", "prompt"),),
        judge="llama-guard-4",
        note="toxic prompts, the counterpart of or-bench-hard",
    ),
    replace(
        _ADVBENCH,
        name="prefill",
        form=FORMS["prefill"],
        note=f"advbench with answers prefilled with '{PREFILL}'; NAME+prefill does so for others",
    ),
    _safety(
        name="jailbreaks",
        prompts=0,
        license="MIT",
        citation="Chao et al. 2024, arXiv 2404.01318; attacks: each artifact names its method",
        judge="llama-guard-4",
        checked="the fields in the README of github.com/JailbreakBench/artifacts",
        note="stored attacks (GCG, PAIR, ...): --set evaluate.advanced.sources.jailbreaks=FILE; the"
        " model reads the attack, the judge reads the goal",
    ),
)
