"""What a benchmark is: a row of the table, and where its prompts are found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from safesteer.evaluate.benchmarks.forms import PLAIN, Form

Kind = Literal["safety", "over_refusal", "capability"]
Metric = Literal["attack_success_rate", "refusal_rate", "accuracy", "win_rate"]

HUB_PAGE = "https://huggingface.co/datasets/"


@dataclass(frozen=True)
class Hub:
    """A data set on the hub.

    Attributes:
        id: owner/name.
        config: its configuration (subset), where it has several.
        split: its split.
        column: the one that holds the prompts.
        where: {column: value} that a row must have to belong to the benchmark.
        revision: branch, tag or commit; the newest if None.
        file: a file of the repository to read in place of what the `datasets` library finds.
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
    """A file below --data-dir, as its authors name it; `column` and `where` as those of `Hub`."""

    path: str
    column: str | None = None
    where: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Harness:
    """How lm-eval measures a capability.

    Attributes:
        task: its name of the task or group.
        config: file of the task below ``lm_eval/tasks``, or the folder of a group's tasks; the
            stock prompts, filters and metrics are used as they are.
        metric: the one that is reported.
        filter: the filter of the answers that it is reported for.
        files: {split: files below --data-dir that can stand for it}.
        shots: examples before the question; None: as many as the task says.
        chat: whether prompt and examples go through the model's chat template.
        packages: modules that scoring needs beside lm-eval.
        runs_code: whether scoring runs code that the model wrote.
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
    """A row of the table.

    Attributes:
        name: what --benchmarks takes.
        kind: safety (refusing is right), over_refusal (answering is right) or capability.
        metric: what is measured.
        prompts: how many there are in the published set; 0 where that depends on the user's file.
        licence: of the prompts.
        citation: authors, year and arXiv id.
        hub: the data set on the hub.
        files: files that can stand for it, the first that is there being read.
        judge: the judge that its authors or the paper use; `--judges` decides.
        gated: whether the hub asks for consent or a login.
        checked: which of id, configuration, split and columns were confirmed, and by what.
        note: what a reader of the figures must know.
        form: how its requests are put, and answers begun.
        harness: for capabilities, how lm-eval measures them.
    """

    name: str
    kind: Kind
    metric: Metric
    prompts: int
    licence: str
    citation: str
    hub: Hub | None = None
    files: tuple[File, ...] = ()
    judge: str = "offline-refusal"
    gated: bool = False
    checked: str = ""
    note: str = ""
    form: Form = PLAIN
    harness: Harness | None = None
