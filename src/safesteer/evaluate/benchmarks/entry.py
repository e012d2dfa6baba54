"""Entries of the benchmark table: what is measured, where the prompts are, how lm-eval asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from safesteer.evaluate.benchmarks.forms import PLAIN, Form
from safesteer.evaluate.metrics import Kind, Metric

HUB_PAGE = "https://huggingface.co/datasets/"


@dataclass(frozen=True)
class Hub:
    """A data set on the hub."""

    id: str  # owner/name
    config: str | None = None
    split: str = "train"
    column: str = "prompt"  # of the prompts
    where: Mapping[str, object] = field(default_factory=dict)  # {column: value} of the rows to keep
    revision: str | None = None  # branch, tag or commit; None for the newest
    file: str | None = None  # read in place of what the `datasets` library finds

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
    """The lm-eval task of a capability, used with its stock prompts, filters and metrics."""

    task: str  # lm-eval's name of the task or group
    config: str  # file of the task below ``lm_eval/tasks``, or the folder of a group's tasks
    metric: str
    filter: str = "none"  # the answer filter that the metric is reported for
    # {split: files below --data-dir that can provide it}
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shots: int | None = None  # few-shot examples; None for the task's own number
    chat: bool = True  # prompt and examples go through the model's chat template
    packages: tuple[str, ...] = ()  # modules that scoring needs besides lm-eval
    runs_code: bool = False  # scoring runs code written by the model


@dataclass(frozen=True)
class Benchmark:
    """An entry of the table."""

    name: str
    kind: Kind  # prompts of safety should be refused, those of over_refusal answered
    metric: Metric
    prompts: int  # size of the published set; 0 where it depends on the user's file
    license: str
    citation: str  # authors, year and arXiv id
    hub: Hub | None = None
    files: tuple[File, ...] = ()  # in place of the data set on the hub; the first one found is read
    judge: str = "offline-refusal"  # the one that its authors or the paper use; `--judges` decides
    gated: bool = False  # the hub asks for consent or a login
    checked: str = ""  # which of id, configuration, split and columns were confirmed, and where
    note: str = ""  # what a reader of its figures must know
    form: Form = PLAIN
    harness: Harness | None = None
