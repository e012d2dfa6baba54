"""Capability benchmarks: questions with right answers, measured by lm-eval, and a win rate."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from safesteer.evaluate.benchmarks.entry import Benchmark, Harness, Hub
from safesteer.evaluate.benchmarks.tables.over_refusal import ALPACA_EVAL
from safesteer.evaluate.metrics import ACCURACY, WIN_RATE

_capability = partial(
    Benchmark, kind="capability", metric=ACCURACY, judge="", checked="by lm-eval's own task"
)

_MMLU_TASK = Harness(
    task="mmlu",
    config="mmlu/default",
    metric="acc",
    files={"test": ("mmlu/test.jsonl", "mmlu/val.jsonl"), "dev": ("mmlu/dev.jsonl",)},
    shots=5,
    chat=False,
)
_MMLU = _capability(
    name="mmlu",
    prompts=14042,
    license="MIT",
    citation="Hendrycks et al. 2020, arXiv 2009.03300",
    hub=Hub("cais/mmlu", split="test", column="question"),
    harness=_MMLU_TASK,
    note="likelihood of A, B, C, D after five examples of the same subject, no chat template",
)

CAPABILITY: tuple[Benchmark, ...] = (
    _MMLU,
    replace(
        _MMLU,
        name="mmlu-generative",
        harness=replace(
            _MMLU_TASK,
            task="mmlu_generative",
            config="mmlu/generative",
            metric="exact_match",
            filter="get_response",
            chat=True,
        ),
        note="the model writes the letter, as in the SafeSteer paper; five examples",
    ),
    _capability(
        name="gsm8k",
        prompts=1319,
        license="MIT",
        citation="Cobbe et al. 2021, arXiv 2110.14168",
        hub=Hub("openai/gsm8k", "main", split="test", column="question"),
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
        note="five examples; strict match",
    ),
    _capability(
        name="math500",
        prompts=500,
        license="MIT",
        citation="Hendrycks et al. 2021, arXiv 2103.03874; Lightman et al. 2023, arXiv 2305.20050",
        hub=Hub("HuggingFaceH4/MATH-500", split="test", column="problem"),
        harness=Harness(
            task="minerva_math500",
            config="minerva_math/minerva_math500.yaml",
            metric="math_verify",
            files={"test": ("math500/test.jsonl",)},
            packages=("antlr4", "sympy", "math_verify"),
        ),
        note="four examples; answers compared by math-verify",
    ),
    _capability(
        name="humaneval",
        prompts=164,
        license="MIT",
        citation="Chen et al. 2021, arXiv 2107.03374",
        hub=Hub("openai/openai_humaneval", split="test"),
        harness=Harness(
            task="humaneval_instruct",
            config="humaneval/humaneval_instruct.yaml",
            metric="passed",
            filter="code",
            files={"test": ("humaneval/HumanEval.jsonl",)},
            runs_code=True,
        ),
        note="pass@1; runs code written by the model (--allow-code-execution) in our own runner,"
        " because lm-eval would download its own from the hub",
    ),
    _capability(
        name="ifeval",
        prompts=541,
        license="Apache-2.0",
        citation="Zhou et al. 2023, arXiv 2311.07911",
        hub=Hub("google/IFEval"),
        harness=Harness(
            task="ifeval",
            config="ifeval/ifeval.yaml",
            metric="prompt_level_strict_acc",
            files={"train": ("ifeval/input_data.jsonl",)},
            packages=("langdetect", "immutabledict", "nltk"),
        ),
        note="share of prompts all of whose instructions are followed (strict)",
    ),
    replace(
        ALPACA_EVAL,
        name="alpaca-eval-win",
        kind="capability",
        metric=WIN_RATE,
        judge="endpoint",
        note="win rate against the base's answers, or for a base model against those in the file;"
        " needs an endpoint (evaluate.endpoint), which sees each pair in both orders",
    ),
)
