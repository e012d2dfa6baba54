"""Entries of the benchmark table: what is measured, where the prompts are, how lm-eval asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from safesteer.evaluate.benchmarks.forms import PLAIN, Form
from safesteer.evaluate.metrics import Kind, Metric

HUB_PAGE = "https://huggingface.co/datasets/"


@dataclass(frozen=True)
class Hub:
    """A data set on the hub.

    Attributes:
        column: the column of the prompts.
        where: {column: value} that selects the rows of the benchmark.
        revision: branch, tag or commit; None for the newest.
        file: a file of the repository to read instead of what the `datasets` library finds.
    """

    id: str  # owner/name
    config: str | None = None
    split: str = "train"
    column: str = "prompt"
    where: Mapping[str, object] = field(default_factory=dict)
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        part = f"/{self.file}" if self.file else f":{self.config or ''}:{self.split}"
        return self.id + part + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class File:
    """A file below --data-dir, under its authors' name; `column` and `where` as in `Hub`."""

    path: str
    column: str | None = None
    where: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Harness:
    """The lm-eval task of a capability, used with its stock prompts, filters and metrics.

    Attributes:
        task: lm-eval's name of the task or group.
        config: file of the task below ``lm_eval/tasks``, or the folder of a group's tasks.
        filter: the answer filter that the metric is reported for.
        files: {split: files below --data-dir that can provide it}.
        shots: few-shot examples; None for the task's own number.
        chat: whether prompt and examples go through the model's chat template.
        packages: modules that scoring needs besides lm-eval.
        runs_code: whether scoring runs code written by the model.
    """

    task: str
    config: str
    metric: str
    filter: str = "none"
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shots: int | None = None
    chat: bool = True
    packages: tuple[str, ...] = ()
    runs_code: bool = False


@dataclass(frozen=True)
class Benchmark:
    """An entry of the table.

    Attributes:
        kind: safety (the model should refuse), over_refusal (it should answer) or capability.
        prompts: size of the published set; 0 where it depends on the user's file.
        citation: authors, year and arXiv id.
        files: can replace the data set on the hub; the first one found is read.
        judge: the judge that its authors or the paper use; `--judges` decides.
        gated: whether the hub asks for consent or a login.
        checked: which of id, configuration, split and columns were confirmed, and where.
        note: what a reader of its figures must know.
    """

    name: str
    kind: Kind
    metric: Metric
    prompts: int
    license: str
    citation: str
    hub: Hub | None = None
    files: tuple[File, ...] = ()
    judge: str = "offline-refusal"
    gated: bool = False
    checked: str = ""
    note: str = ""
    form: Form = PLAIN
    harness: Harness | None = None
