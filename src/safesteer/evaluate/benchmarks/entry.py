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
        id: owner/name.
        config: its configuration (subset), where it has several.
        split: its split.
        column: the column of the prompts.
        where: {column: value} that selects the rows of the benchmark.
        revision: branch, tag or commit; None for the newest.
        file: a file of the repository to read instead of what the `datasets` library finds.
    """

    id: str
    config: str | None = None
    split: str = "train"
    column: str = "prompt"
    where: Mapping[str, object] = field(default_factory=dict)
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        place = f"{self.id}/{self.file}" if self.file else f"{self.id}:{self.config or ''}"
        place += "" if self.file else f":{self.split}"
        return place + (f"@{self.revision}" if self.revision else "")


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
        metric: the reported metric.
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
        name: its name for --benchmarks.
        kind: safety (the model should refuse), over_refusal (it should answer) or capability.
        metric: what is measured.
        prompts: size of the published set; 0 where it depends on the user's file.
        license: of the prompts.
        citation: authors, year and arXiv id.
        hub: the data set on the hub.
        files: files that can replace it; the first one found is read.
        judge: the judge that its authors or the paper use; `--judges` decides.
        gated: whether the hub asks for consent or a login.
        checked: which of id, configuration, split and columns were confirmed, and where.
        note: what a reader of its figures must know.
        form: the form of its requests.
        harness: the lm-eval task of a capability.
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
