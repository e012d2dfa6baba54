"""Capability benchmarks through lm-eval, around a model that is already in memory.

Stock tasks are used with their prompts, examples, filters and metrics; local files replace only the
data set. Generative tasks go through the model's chat template with examples as turns. MMLU's
multiple choice does not, as in the papers that report it.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from accelerate.utils.memory import find_executable_batch_size

from safesteer.config.settings import EvaluateSettings
from safesteer.errors import InputError, SafeSteerError, one_line
from safesteer.evaluate.benchmarks.sources import Loaded, evenly
from safesteer.evaluate.benchmarks.tasks import LETTERS, LOCAL, harness_of, make_tasks
from safesteer.evaluate.metrics import ACCURACY
from safesteer.evaluate.scores import Score
from safesteer.events import Progress
from safesteer.inference.variant import ModelVariant
from safesteer.models.answer_cache import Cache
from safesteer.models.generate import plain_generation
from safesteer.models.layers import without_adapter
from safesteer.models.template import frozen_clock
from safesteer.prompts.readers import commit_of

# Batch size: lm-eval keeps the logits of a whole batch twice, in float32.
QUESTION_TOKENS = 1024
MEMORY_SHARE = 0.1
MAX_ROWS = 32


def check_requirements(loaded: Loaded, settings: EvaluateSettings) -> None:
    """Check that the packages and tokenizer of a capability are there and its code may run."""
    harness = harness_of(loaded)
    modules = ("lm_eval", *harness.packages)
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(
            f"benchmark {loaded.name} needs {', '.join(missing)}. Try: pip install"
            " 'safesteer[eval]'"
        )
    if "nltk" in harness.packages:
        import nltk

        try:
            nltk.data.find("tokenizers/punkt_tab")
        except LookupError:
            raise InputError(
                f"benchmark {loaded.name} needs NLTK's sentence tokenizer. Try: python -m"
                " nltk.downloader punkt_tab"
            ) from None
    if harness.runs_code and not settings.allow_code_execution:
        raise InputError(
            f"benchmark {loaded.name} runs code that the model wrote. Try: --allow-code-execution,"
            " on a machine where it can do no harm"
        )


@dataclass
class Capability:
    """A capability benchmark with its questions. Make it with `prepare`."""

    loaded: Loaded
    tasks: dict[str, Any]  # {name: lm_eval Task}; one, or one per subject
    picked: dict[str, list[int]]  # {name: indices of the questions that are asked}
    revision: str | None = None  # commit of the hub's data set

    @classmethod
    def prepare(cls, loaded: Loaded, limit: int | None) -> Capability:
        """Read the questions and pick `limit` of them, evenly spaced; None takes all."""
        with _quiet(), tempfile.TemporaryDirectory() as folder:
            try:
                tasks = make_tasks(loaded, Path(folder))
            except InputError:
                raise
            except Exception as error:  # no network, another schema: a dozen unrelated types
                raise InputError(
                    f"benchmark {loaded.name}: its questions cannot be read from"
                    f" {loaded.source['from']} ({one_line(error)[:200]}). Try: --data-dir, or"
                    f" evaluate.advanced.sources.{loaded.name}"
                ) from None
        sizes = {name: len(task.eval_docs) for name, task in tasks.items()}
        picked: dict[str, list[int]] = {name: [] for name in tasks}
        questions = [(name, index) for name, size in sizes.items() for index in range(size)]
        for chosen in evenly(len(questions), limit):
            name, index = questions[chosen]
            picked[name].append(index)
        asked = {name: indices for name, indices in picked.items() if indices}
        first = next(iter(tasks.values()))
        revision = None if loaded.files else commit_of(first.eval_docs)
        return cls(loaded, {name: tasks[name] for name in asked}, asked, revision)

    def measure(
        self,
        variant: ModelVariant,
        cache: Cache | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Score:
        """Measure `variant` in batches of at most `batch_size` questions.

        `cache` keeps the rows of a finished task, which is then not asked again.

        Raises:
            SafeSteerError: lm-eval fails on this model, such as for its short context.
        """
        loaded, harness = self.loaded, harness_of(self.loaded)
        details = {
            "harness": {
                "task": harness.task,
                "lm_eval": metadata.version("lm_eval"),
                "version": next(iter(self.tasks.values())).VERSION,
                "metric": f"{harness.metric},{harness.filter}",
                "shots": harness.shots,
                "chat_template": harness.chat,
            }
        }
        source = dict(loaded.source)
        if not loaded.files:
            source["revision"] = self.revision
        key = {
            "capability": details,
            "picked": self.picked,
            "benchmark": loaded.sha256,
            "revision": self.revision,
        }
        rows = cache.get(key) if cache is not None else None
        if rows is None:
            total = sum(map(len, self.picked.values()))
            with variant.active(), plain_generation(variant.runner, variant.model.tokenizer):
                rows = self._rows(variant, batch_size, total, progress)
            if cache is not None:
                cache.put(key, rows)
        elif progress is not None:
            progress(len(rows), len(rows))
        return Score(loaded.name, ACCURACY, rows, source, details=details)

    def _rows(
        self, variant: ModelVariant, batch_size: int | None, total: int, progress: Progress | None
    ) -> list[dict[str, Any]]:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        harness = harness_of(self.loaded)
        # Indexing lm-eval's thousands of tasks takes minutes, and ours are already made.
        manager = TaskManager(include_defaults=False)

        # `batch_size` is meant for short prompts; here few-shot examples precede the question.
        fitting = _rows_that_fit(variant)

        @find_executable_batch_size(starting_batch_size=min(batch_size or fitting, fitting))
        def run(rows: int) -> Any:
            return simple_evaluate(
                model=_model(variant, rows, total, progress),
                tasks=list(self.tasks.values()),
                samples=self.picked,
                num_fewshot=harness.shots,
                apply_chat_template=harness.chat,
                fewshot_as_multiturn=harness.chat,
                bootstrap_iters=0,
                task_manager=manager,
                confirm_run_unsafe_code=harness.runs_code,
            )

        with _quiet():
            try:
                found = run()
            except (AssertionError, ValueError) as error:  # a model whose context is too short
                raise SafeSteerError(
                    f"benchmark {self.loaded.name}: lm-eval failed ({one_line(error)[:200]})."
                    " Try: leave it out of --benchmarks"
                ) from error
        return [
            self._row(name, sample)
            for name in self.tasks
            for sample in found["samples"][name]
            if sample["filter"] == harness.filter
        ]

    def _row(self, task: str, sample: Mapping[str, Any]) -> dict[str, Any]:
        harness, hub = harness_of(self.loaded), self.loaded.benchmark.hub
        assert hub is not None
        responses = [response[0] for response in sample["resps"]]
        if isinstance(responses[0], str):
            completion = responses[0]
        else:  # (log-likelihood, whether it is greedy) of each choice
            likelihoods = [float(response[0]) for response in responses]
            completion = LETTERS[likelihoods.index(max(likelihoods))]
        return {
            "id": f"{task.removeprefix(LOCAL)}-{sample['doc_id']}",
            "category": str(sample["doc"].get("subject") or ""),
            "prompt": str(sample["doc"][hub.column]),
            "completion": completion,
            "score": float(sample[harness.metric]),
        }


def _model(variant: ModelVariant, rows: int, total: int, progress: Progress | None) -> Any:
    """The variant as lm-eval's model; reports each batch to `progress`."""
    from lm_eval.models.huggingface import HFLM

    class Model(HFLM):
        done = 0

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().generate_until(requests, disable_tqdm=True)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def apply_chat_template(self, chat_history: Any, *given: Any, **named: Any) -> str:
            with frozen_clock(chat.now):
                text = super().apply_chat_template(chat.shaped(chat_history), *given, **named)
            prompt = named.get("add_generation_prompt", given[0] if given else True)
            return f"{text}{chat.appended}" if prompt else str(text)

        def _model_call(self, inps: Any, *others: Any, **named: Any) -> Any:
            found = super()._model_call(inps, *others, **named)
            self._advance(len(inps))
            return found

        def _model_generate(self, context: Any, *others: Any, **named: Any) -> Any:
            found = super()._model_generate(context, *others, **named)
            self._advance(len(context))
            return found

        def _advance(self, count: int) -> None:
            self.done = min(total, self.done + count)
            if progress is not None:
                progress(self.done, total)

    runner, chat = variant.runner, variant.model.chat
    # An adapter acts inside the base model's modules, whose class lm-eval knows.
    return Model(
        pretrained=without_adapter(runner),
        backend="causal",
        tokenizer=variant.model.tokenizer,
        batch_size=rows,
        chat_template_args=chat.template_kwargs,
        think_end_token=chat.thinking.closing.strip() if chat.thinking and chat.thinks else None,
    )


def _rows_that_fit(variant: ModelVariant) -> int:
    """Batch size by the device's memory and the size of the vocabulary."""
    import psutil
    import torch

    model = variant.model.model
    if model.device.type == "cuda":
        memory = torch.cuda.get_device_properties(model.device).total_memory
    else:
        memory = psutil.virtual_memory().total
    vocabulary = model.get_output_embeddings().weight.shape[0]
    rows = int(MEMORY_SHARE * memory / (QUESTION_TOKENS * vocabulary * 4 * 2))
    return max(1, min(MAX_ROWS, rows))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval's progress bars and messages, and its report of downloads to the hub."""
    import datasets
    from lm_eval import evaluator

    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval")]
    levels = [logger.level for logger in loggers]
    report_downloads = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    git = evaluator.get_git_commit_hash
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    # Reading a local file would be reported too.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    # It runs git in the current folder, which prints an error outside a repository.
    evaluator.get_git_commit_hash = lambda: None
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = report_downloads
        evaluator.get_git_commit_hash = git
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
