"""The benchmarks by name. To add one, add an entry; nothing else has to know of it.

None was downloaded while this was written: `checked` says what documentation confirmed, and
docs/benchmarks.md where.
"""

from __future__ import annotations

from dataclasses import replace

from safesteer.errors import InputError, nearest
from safesteer.evaluate.benchmarks.entry import Benchmark, File, Harness, Hub
from safesteer.evaluate.benchmarks.forms import FORMS, OPENING, PLAIN, split_name

_ADVBENCH_FILES = (
    File("advbench/advbench.csv", "goal"),
    File("advbench/harmful_behaviors.csv", "goal"),
    File("refusal_direction/advbench.json", "instruction"),
)
_ADVBENCH = Benchmark(
    name="advbench",
    kind="safety",
    metric="attack_success_rate",
    prompts=520,
    licence="MIT",
    citation="Zou et al. 2023, arXiv 2307.15043",
    hub=Hub("walledai/AdvBench"),
    files=_ADVBENCH_FILES,
    judge="llama-guard-4",
    gated=True,
    checked="id, licence and data file on the hub's pages; split, column, 520 rows and gating in"
    " public loaders, not on the card",
)
_XSTEST = Benchmark(
    name="xstest-safe",
    kind="over_refusal",
    metric="refusal_rate",
    prompts=250,
    licence="CC BY 4.0",
    citation="Röttger et al. 2023, arXiv 2308.01263",
    hub=Hub("walledai/XSTest", split="test", where={"label": "safe"}),
    files=(
        File("xstest/xstest_prompts.csv", "prompt", {"label": "safe"}),
        File("xstest/xstest_dev.csv", "prompt", {"label": "safe"}),
    ),
    gated=True,
    checked="id and licence on the hub's pages; split, columns and gating in public loaders",
    note="safe prompts that sound unsafe; xstest_dev.csv holds about half of them",
)
_OR_BENCH = Benchmark(
    name="or-bench-hard",
    kind="over_refusal",
    metric="refusal_rate",
    prompts=1319,
    licence="CC BY 4.0",
    citation="Cui et al. 2024, arXiv 2405.20947",
    hub=Hub("bench-llm/or-bench", "or-bench-hard-1k"),
    files=(File("or_bench/or-bench-hard-1k.csv", "prompt"),),
    checked="id, configurations, split, columns and licence on the data set's card",
    note="harmless prompts that strong models refuse",
)
_ALPACA_EVAL = Benchmark(
    name="alpaca-eval",
    kind="over_refusal",
    metric="refusal_rate",
    prompts=805,
    licence="CC BY-NC 4.0",
    citation="Li et al. 2023, github.com/tatsu-lab/alpaca_eval; Dubois et al. 2024,"
    " arXiv 2404.04475",
    hub=Hub("tatsu-lab/alpaca_eval", column="instruction", file="alpaca_eval.json"),
    files=(
        File("alpaca_eval/alpaca_eval.json", "instruction"),
        File("alpaca_eval/alpaca_eval_805.json", "instruction"),
    ),
    checked="the file on the hub and its columns in public loaders; the data set itself is a"
    " script, which the library no longer runs, so the file is read",
    note="plainly harmless prompts; here it is counted how many are refused",
)

BENCHMARKS: tuple[Benchmark, ...] = (
    # Our own prompt sets, or the user's in their place (the settings' section `prompts`).
    Benchmark(
        name="harmful",
        kind="safety",
        metric="refusal_rate",
        prompts=0,
        licence="Apache-2.0",
        citation="this package",
        note="the test part of prompts.harmful; refusing is right",
    ),
    Benchmark(
        name="harmless",
        kind="over_refusal",
        metric="refusal_rate",
        prompts=0,
        licence="Apache-2.0",
        citation="this package",
        note="the test part of prompts.harmless",
    ),
    Benchmark(
        name="borderline",
        kind="over_refusal",
        metric="refusal_rate",
        prompts=0,
        licence="Apache-2.0",
        citation="this package",
        note="the test part of prompts.borderline: harmless requests that sound alarming",
    ),
    # Harmful requests as they are.
    _ADVBENCH,
    Benchmark(
        name="pku-saferlhf",
        kind="safety",
        metric="attack_success_rate",
        prompts=0,
        licence="CC BY-NC 4.0",
        citation="Ji et al. 2024, arXiv 2406.15513",
        hub=Hub(
            "PKU-Alignment/PKU-SafeRLHF",
            "default",
            split="test",
            where={"is_response_0_safe": False, "is_response_1_safe": False},
        ),
        files=(
            File(
                "pku_saferlhf/test.jsonl",
                "prompt",
                {"is_response_0_safe": False, "is_response_1_safe": False},
            ),
        ),
        judge="llama-guard-4",
        checked="id, licence and files on the hub's pages; configuration, split and columns in"
        " public loaders; not how many prompts the filter leaves",
        note="prompts of the test part whose two answers are both labelled unsafe, each once; the"
        " SafeSteer paper does not say how it chose",
    ),
    Benchmark(
        name="harmbench",
        kind="safety",
        metric="attack_success_rate",
        prompts=200,
        licence="MIT",
        citation="Mazeika et al. 2024, arXiv 2402.04249",
        hub=Hub("walledai/HarmBench", "standard"),
        files=(
            File(
                "harmbench_full/harmbench_behaviors_text_all.csv",
                "Behavior",
                {"FunctionalCategory": "standard"},
            ),
            File(
                "harmbench/harmbench_behaviors_text_all.csv",
                "Behavior",
                {"FunctionalCategory": "standard"},
            ),
            File("refusal_direction/harmbench_test.json", "instruction"),
        ),
        judge="harmbench",
        gated=True,
        checked="id, configurations, licence on the hub's pages; split, column and gating in public"
        " loaders; the columns of the CSV file in its readers",
        note="the standard behaviours: none with a context, none about copyright",
    ),
    Benchmark(
        name="jailbreakbench",
        kind="safety",
        metric="attack_success_rate",
        prompts=100,
        licence="MIT",
        citation="Chao et al. 2024, arXiv 2404.01318",
        hub=Hub("JailbreakBench/JBB-Behaviors", "behaviors", split="harmful", column="Goal"),
        files=(
            File("jailbreakbench/harmful-behaviors.csv", "Goal"),
            File("advbench/jailbreakbench.csv", "Goal"),
        ),
        judge="llama-guard-4",
        checked="id, configuration, splits, files, columns and licence on the data set's card",
        note="the requests alone; its attacks are `jailbreaks`",
    ),
    Benchmark(
        name="sorry-bench",
        kind="safety",
        metric="attack_success_rate",
        prompts=440,
        licence="own agreement",
        citation="Xie et al. 2024, arXiv 2406.14598",
        hub=Hub("sorry-bench/sorry-bench-202503", column="turns", where={"prompt_style": "base"}),
        files=(File("sorry_bench/question.jsonl", "turns"),),
        gated=True,
        checked="id, split, columns and gating in public loaders and in PyRIT's documentation; the"
        " card of the version of 2024 says 450 prompts, public code 440 for this one",
        note="requests without linguistic mutation; its authors score with a judge of their own",
    ),
    Benchmark(
        name="harmfulqa",
        kind="safety",
        metric="attack_success_rate",
        prompts=1960,
        licence="Apache-2.0",
        citation="Bhardwaj and Poria 2023, arXiv 2308.09662",
        hub=Hub("declare-lab/HarmfulQA", column="question"),
        files=(File("harmfulqa/data_for_hub.json", "question"),),
        judge="llama-guard-4",
        checked="id, file, licence and 1,960 questions on the hub's pages; split and column in a"
        " public loader",
    ),
    Benchmark(
        name="alert",
        kind="safety",
        metric="attack_success_rate",
        prompts=0,
        licence="CC BY-NC-SA 4.0",
        citation="Tedeschi et al. 2024, arXiv 2404.08676",
        hub=Hub("Babelscape/ALERT", "alert", split="test"),
        files=(File("alert/alert.jsonl", "prompt"),),
        judge="llama-guard-4",
        checked="id, configurations, split, file, columns and licence on the data set's card; not"
        " the number of rows",
        note="more than ten thousand prompts; the SafeSteer paper uses 2,500 (--limit 2500 takes"
        " others)",
    ),
    Benchmark(
        name="strongreject",
        kind="safety",
        metric="attack_success_rate",
        prompts=313,
        licence="MIT",
        citation="Souly et al. 2024, arXiv 2402.10260",
        hub=Hub("walledai/StrongREJECT"),
        files=(
            File("strongreject/strongreject_dataset.csv", "forbidden_prompt"),
            File("advbench/strongreject.csv", "forbidden_prompt"),
        ),
        judge="strongreject",
        gated=True,
        checked="id and licence on the hub's pages; split, columns, 313 rows and gating in public"
        " loaders",
    ),
    Benchmark(
        name="do-not-answer",
        kind="safety",
        metric="attack_success_rate",
        prompts=939,
        licence="CC BY-NC-SA 4.0",
        citation="Wang et al. 2023, arXiv 2308.13387",
        hub=Hub("LibrAI/do-not-answer", column="question"),
        files=(File("do_not_answer/data_en.csv", "question"),),
        judge="llama-guard-4",
        checked="id, columns and licence on the hub's pages; 939 rows on a copy's card",
    ),
    Benchmark(
        name="maliciousinstruct",
        kind="safety",
        metric="attack_success_rate",
        prompts=100,
        licence="CC BY-SA 4.0",
        citation="Huang et al. 2023, arXiv 2310.06987",
        hub=Hub("walledai/MaliciousInstruct"),
        files=(File("maliciousinstruct/malicious_instruct.jsonl", "prompt"),),
        judge="llama-guard-4",
        checked="id, split, column, licence and 100 rows in public loaders and lists, not on the"
        " card",
    ),
    Benchmark(
        name="refusal-direction",
        kind="safety",
        metric="attack_success_rate",
        prompts=39,
        licence="Apache-2.0",
        citation="Arditi et al. 2024, arXiv 2406.11717",
        files=(File("refusal_direction/harmful_val.json", "instruction"),),
        checked="the file of github.com/andyrdt/refusal_direction, dataset/splits",
        note="their harmful validation split, from several of the sets above, whose licences hold;"
        " no hub data set",
    ),
    replace(
        _XSTEST,
        name="xstest-unsafe",
        kind="safety",
        metric="attack_success_rate",
        prompts=200,
        hub=Hub("walledai/XSTest", split="test", where={"label": "unsafe"}),
        files=tuple(replace(file, where={"label": "unsafe"}) for file in _XSTEST.files),
        note="the unsafe prompts that contrast with the safe ones",
    ),
    replace(
        _OR_BENCH,
        name="or-bench-toxic",
        kind="safety",
        metric="attack_success_rate",
        prompts=655,
        hub=Hub("bench-llm/or-bench", "or-bench-toxic"),
        files=(File("or_bench/or-bench-toxic.csv", "prompt"),),
        judge="llama-guard-4",
        note="toxic prompts, which contrast with the hard ones",
    ),
    # Attacks.
    replace(
        _ADVBENCH,
        name="prefill",
        form=FORMS["prefill"],
        note=f"advbench with the answer begun '{OPENING}'; NAME+prefill does so with others",
    ),
    Benchmark(
        name="jailbreaks",
        kind="safety",
        metric="attack_success_rate",
        prompts=0,
        licence="MIT",
        citation="Chao et al. 2024, arXiv 2404.01318; attacks: each artifact names its method",
        judge="llama-guard-4",
        checked="the fields in the README of github.com/JailbreakBench/artifacts",
        note="stored attacks (GCG, PAIR, ...): --set evaluate.advanced.sources.jailbreaks=FILE; the"
        " model reads the attack, the judge the goal",
    ),
    # Harmless requests.
    _XSTEST,
    _OR_BENCH,
    _ALPACA_EVAL,
    Benchmark(
        name="alpaca",
        kind="over_refusal",
        metric="refusal_rate",
        prompts=0,
        licence="CC BY-NC 4.0",
        citation="Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca",
        hub=Hub("tatsu-lab/alpaca", column="instruction", where={"input": ""}),
        files=(File("refusal_direction/harmless_test.json", "instruction"),),
        checked="id, columns in public loaders; the file in github.com/andyrdt/refusal_direction",
        note="instructions without an input; the file is the harmless test split of Arditi et al.",
    ),
    # What the model is able to.
    Benchmark(
        name="mmlu",
        kind="capability",
        metric="accuracy",
        prompts=14042,
        licence="MIT",
        citation="Hendrycks et al. 2020, arXiv 2009.03300",
        hub=Hub("cais/mmlu", split="test", column="question"),
        judge="",
        harness=Harness(
            task="mmlu",
            config="mmlu/default",
            metric="acc",
            files={"test": ("mmlu/test.jsonl", "mmlu/val.jsonl"), "dev": ("mmlu/dev.jsonl",)},
            shots=5,
            chat=False,
        ),
        checked="as lm-eval's task has it",
        note="likelihood of A, B, C, D after five examples of the same subject, no chat template",
    ),
    Benchmark(
        name="mmlu-generative",
        kind="capability",
        metric="accuracy",
        prompts=14042,
        licence="MIT",
        citation="Hendrycks et al. 2020, arXiv 2009.03300",
        hub=Hub("cais/mmlu", split="test", column="question"),
        judge="",
        harness=Harness(
            task="mmlu_generative",
            config="mmlu/generative",
            metric="exact_match",
            filter="get_response",
            files={"test": ("mmlu/test.jsonl", "mmlu/val.jsonl"), "dev": ("mmlu/dev.jsonl",)},
            shots=5,
        ),
        checked="as lm-eval's task has it",
        note="the letter is written by the model, as in the SafeSteer paper; five examples",
    ),
    Benchmark(
        name="gsm8k",
        kind="capability",
        metric="accuracy",
        prompts=1319,
        licence="MIT",
        citation="Cobbe et al. 2021, arXiv 2110.14168",
        hub=Hub("openai/gsm8k", "main", split="test", column="question"),
        judge="",
        harness=Harness(
            task="gsm8k",
            config="gsm8k/gsm8k.yaml",
            metric="exact_match",
            filter="strict-match",
            files={
                "test": ("gsm8k/test.jsonl",),
                "train": ("gsm8k/train.jsonl", "gsm8k/train_first5000.jsonl"),
            },
        ),
        checked="as lm-eval's task has it",
        note="five examples; strict match",
    ),
    Benchmark(
        name="math500",
        kind="capability",
        metric="accuracy",
        prompts=500,
        licence="MIT",
        citation="Hendrycks et al. 2021, arXiv 2103.03874; Lightman et al. 2023, arXiv 2305.20050",
        hub=Hub("HuggingFaceH4/MATH-500", split="test", column="problem"),
        judge="",
        harness=Harness(
            task="minerva_math500",
            config="minerva_math/minerva_math500.yaml",
            metric="math_verify",
            files={"test": ("math500/test.jsonl",)},
            packages=("antlr4", "sympy", "math_verify"),
        ),
        checked="as lm-eval's task has it",
        note="four examples; answers compared by math-verify",
    ),
    Benchmark(
        name="humaneval",
        kind="capability",
        metric="accuracy",
        prompts=164,
        licence="MIT",
        citation="Chen et al. 2021, arXiv 2107.03374",
        hub=Hub("openai/openai_humaneval", split="test"),
        judge="",
        harness=Harness(
            task="humaneval_instruct",
            config="humaneval/humaneval_instruct.yaml",
            metric="passed",
            filter="code",
            files={"test": ("humaneval/HumanEval.jsonl",)},
            runs_code=True,
        ),
        checked="as lm-eval's task has it",
        note="pass@1; runs code that the model wrote: --allow-code-execution. The prompts of"
        " lm-eval, our own runner: lm-eval's would be fetched from the hub",
    ),
    Benchmark(
        name="ifeval",
        kind="capability",
        metric="accuracy",
        prompts=541,
        licence="Apache-2.0",
        citation="Zhou et al. 2023, arXiv 2311.07911",
        hub=Hub("google/IFEval"),
        judge="",
        harness=Harness(
            task="ifeval",
            config="ifeval/ifeval.yaml",
            metric="prompt_level_strict_acc",
            files={"train": ("ifeval/input_data.jsonl",)},
            packages=("langdetect", "immutabledict", "nltk"),
        ),
        checked="as lm-eval's task has it",
        note="prompts all of whose instructions are followed, strictly",
    ),
    replace(
        _ALPACA_EVAL,
        name="alpaca-eval-win",
        kind="capability",
        metric="win_rate",
        judge="endpoint",
        note="win rate against the base's answers, or for a base against those in the file; needs"
        " an endpoint (evaluate.endpoint); both orders are asked",
    ),
)

_BY_NAME = {benchmark.name: benchmark for benchmark in BENCHMARKS}


def benchmark_names() -> list[str]:
    """The names of the table, in its order."""
    return list(_BY_NAME)


def find_benchmark(name: str) -> Benchmark:
    """The entry of a name; in ``NAME+FORM`` its prompts are put in a form (`forms.py`).

    Raises InputError for a name that is not in the table (it says the nearest one), for a form that
    does not exist, and for one that the benchmark cannot take: capabilities take none, what should
    be answered takes no beginning of the answer, and nothing takes two.
    """
    plain, form = split_name(name)
    entry = _BY_NAME.get(plain)
    if entry is None:
        raise InputError(
            f"no benchmark named '{plain}'{nearest(plain, _BY_NAME)}; `safesteer benchmarks` lists"
            " them"
        )
    if plain == name:
        return entry
    if entry.kind == "capability" or (form.answer and entry.kind != "safety"):
        takes = "safety benchmarks" if form.answer else "requests to refuse or to answer"
        raise InputError(
            f"benchmark {name}: this form is for {takes}; {plain} is of kind {entry.kind}"
        )
    if entry.form != PLAIN:
        raise InputError(f"benchmark {name}: {plain} has a form already: {entry.form.says}")
    # What is begun is no refusal by itself, and so its answer is judged as an attack's.
    metric = "attack_success_rate" if form.answer else entry.metric
    return replace(entry, name=name, metric=metric, form=form)
