"""Prompts of a benchmark: which file or hub data set they are read from, and which of its rows.

Everything that can be wrong here is found before a model is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safesteer.config.settings import EvaluateSettings
from safesteer.errors import InputError, one_line
from safesteer.evaluate.benchmarks.entry import HUB_PAGE, Benchmark, File, Hub
from safesteer.evaluate.benchmarks.forms import split_name
from safesteer.evaluate.benchmarks.table import find_benchmark
from safesteer.evaluate.metrics import WIN_RATE
from safesteer.files import read_json, sha256_file
from safesteer.prompts import PROMPT_SETS, Prompt, PromptSet
from safesteer.prompts.load import prompts_of_table
from safesteer.prompts.readers import is_file_source, read_hub, read_rows, read_table
from safesteer.prompts.rows import Table


@dataclass(frozen=True)
class Item:
    """A prompt of a benchmark."""

    prompt: Prompt  # as the model reads it
    request: str  # as the judge reads it; an attack hides it in the prompt
    prefill: str = ""  # start of the answer, which the model continues
    reference: str = ""  # another model's answer, to compare with


@dataclass(frozen=True)
class Loaded:
    """A benchmark with its prompts."""

    benchmark: Benchmark
    items: list[Item]  # empty for a task that lm-eval reads itself
    source: dict[str, Any]  # {"from", and "sha256" of a file or "revision" of a hub data set}
    skipped: int = 0  # rows without a prompt, such as failed attacks
    files: dict[str, Path] = field(default_factory=dict)  # {split: file}; empty for the hub

    @property
    def name(self) -> str:
        """Its name for --benchmarks."""
        return self.benchmark.name

    @property
    def is_win_rate(self) -> bool:
        """Whether answers are compared with another model's."""
        return self.benchmark.metric == WIN_RATE

    @property
    def sha256(self) -> str:
        """Hash of everything that decides what the models are asked."""
        files = {split: sha256_file(path) for split, path in self.files.items()}
        content = [[asdict(item) for item in self.items], self.source.get("revision"), files]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_benchmarks(
    names: Sequence[str], settings: EvaluateSettings, own: Mapping[str, PromptSet]
) -> list[Loaded]:
    """Read the benchmarks `names` (NAME or NAME+FORM), each once, in their order.

    Benchmarks named after one of the run's `own` prompt sets use its test part.
    """
    for name in settings.advanced.sources:
        try:
            find_benchmark(name)
        except InputError as error:
            raise InputError(f"evaluate.advanced.sources.{name}: {error}") from None
    if settings.data_dir is not None and not Path(settings.data_dir).expanduser().is_dir():
        raise InputError(
            f"evaluate.data_dir: there is no folder {settings.data_dir}. Try: check the path"
        )
    benchmarks = [find_benchmark(name) for name in dict.fromkeys(names)]
    return [_with_form(_load(benchmark, settings, own)) for benchmark in benchmarks]


def evenly(count: int, limit: int | None) -> list[int]:
    """`limit` indices evenly spaced over `count`, the first included; all of them for None.

    The first rows of many files share one topic.
    """
    if limit is None or limit >= count:
        return list(range(count))
    return [index * count // limit for index in range(limit)]


def found_files(benchmark: Benchmark, folder: str | Path) -> list[Path]:
    """The files below `folder` that the benchmark would read; empty if one is missing."""
    folder = Path(folder).expanduser()
    if benchmark.harness is not None:
        return list(_split_files(benchmark, folder).values())
    return [folder / file.path for file in benchmark.files if (folder / file.path).is_file()][:1]


def _load(benchmark: Benchmark, settings: EvaluateSettings, own: Mapping[str, PromptSet]) -> Loaded:
    plain, _ = split_name(benchmark.name)
    given = settings.advanced.sources.get(benchmark.name) or settings.advanced.sources.get(plain)
    if plain in PROMPT_SETS and given is None:
        prompts = own[plain].test[: settings.limit]
        items = [_item(benchmark, prompt) for prompt in prompts]
        return Loaded(benchmark, items, {"from": own[plain].source, "sha256": own[plain].sha256})
    if benchmark.harness is not None:
        return _load_harness(benchmark, settings, given)
    if plain == "jailbreaks":
        return _load_jailbreaks(benchmark, settings, given)
    table, where, source = _table(benchmark, settings, given)
    prompts, references = _prompts(benchmark, table, where, source["from"])
    kept = [prompts[index] for index in evenly(len(prompts), settings.limit)]
    items = [_item(benchmark, prompt, references.get(prompt.text, "")) for prompt in kept]
    return Loaded(benchmark, items, source)


def _with_form(loaded: Loaded) -> Loaded:
    form = loaded.benchmark.form.record
    return replace(loaded, source={**loaded.source, "form": form}) if form else loaded


def _item(benchmark: Benchmark, prompt: Prompt, reference: str = "") -> Item:
    form = benchmark.form
    reworded = replace(prompt, messages=form.apply(prompt.messages))
    return Item(reworded, prompt.text, form.prefill, reference)


def _table(
    benchmark: Benchmark, settings: EvaluateSettings, given: str | None
) -> tuple[Table, Hub | File | None, dict[str, Any]]:
    """The rows, the entry's source whose column and filter apply to them, and their record."""
    name = benchmark.name
    if given is not None and is_file_source(given):
        path = Path(given).expanduser()
        table = read_table(path)
        return table, _matching_source(benchmark, table), _file_record(path, path.name)
    if given is not None:
        table, revision = _read_hub(benchmark, given)
        return table, _matching_source(benchmark, table), {"from": given, "revision": revision}
    if settings.data_dir is not None:
        paths = [Path(settings.data_dir).expanduser() / file.path for file in benchmark.files]
        for file, path in zip(benchmark.files, paths, strict=True):
            if path.is_file():
                return read_table(path), file, _file_record(path, file.path)
        expected = " or ".join(map(str, paths))
        raise InputError(
            f"benchmark {name}: there is no file {expected}. Try: put it there, or set"
            f" evaluate.advanced.sources.{name} to a file or a hub data set"
        )
    if benchmark.hub is None:
        raise InputError(
            f"benchmark {name} has no hub data set. Try: --data-dir DIR with"
            f" {benchmark.files[0].path} in it, or evaluate.advanced.sources.{name}=FILE"
        )
    hub = benchmark.hub
    if hub.file is not None:
        path = _download(benchmark, hub)
        # The hub's cache keeps a file in a folder named after its commit.
        return read_table(path), hub, {"from": str(hub), "revision": path.parent.name}
    table, revision = _read_hub(benchmark, str(hub))
    return table, hub, {"from": str(hub), "revision": revision or hub.revision}


def _file_record(path: Path, shown: str) -> dict[str, Any]:
    return {"from": shown, "sha256": sha256_file(path)}


def _read_hub(benchmark: Benchmark, source: str) -> tuple[Table, str | None]:
    try:
        return read_hub(source)
    except InputError as error:
        reason, _, hint = str(error).partition(". Try: ")
        raise _unreachable(benchmark, source, reason, hint) from None


def _download(benchmark: Benchmark, hub: Hub) -> Path:
    from huggingface_hub import hf_hub_download

    assert hub.file is not None
    try:
        return Path(hf_hub_download(hub.id, hub.file, repo_type="dataset", revision=hub.revision))
    except Exception as error:  # unknown id, gated, no network: the library has a class for each
        reason = f"{hub} cannot be loaded ({one_line(error)[:160]})"
        raise _unreachable(benchmark, str(hub), reason) from None


def _unreachable(benchmark: Benchmark, source: str, reason: str, hint: str = "") -> InputError:
    hub = benchmark.hub
    if benchmark.gated and hub is not None and hub.id in source:
        reason += "; the data set is gated"
        hint = f"ask for access at {HUB_PAGE}{hub.id} and run `hf auth login`"
    hints = [hint] if hint else []
    hints += [f"--data-dir DIR with {file.path} in it" for file in benchmark.files[:1]]
    hints.append(f"evaluate.advanced.sources.{benchmark.name}=FILE")
    return InputError(f"benchmark {benchmark.name}: {reason}. Try: {', or '.join(hints)}")


def _matching_source(benchmark: Benchmark, table: Table) -> Hub | File | None:
    """The entry's source whose columns a user's file has; None takes the file as it is."""
    columns = set(table.columns)
    sources = [source for source in (benchmark.hub, *benchmark.files) if source is not None]
    return next((s for s in sources if s.column in columns and set(s.where) <= columns), None)


def _prompts(
    benchmark: Benchmark, table: Table, where: Hub | File | None, source: str
) -> tuple[list[Prompt], dict[str, str]]:  # prompts, {prompt: reference answer}
    column = where.column if where else None
    wanted = dict(where.where) if where else {}
    for name in wanted:
        if name not in table.columns:
            raise InputError(
                f"benchmark {benchmark.name}: {source} has no column '{name}', which selects its"
                " rows. Try: the file as its authors publish it"
            )
    kept = [
        row
        for row in table.rows
        if row.fault or all(row.values.get(k) == v for k, v in wanted.items())
    ]
    if wanted and all(row.fault for row in kept):
        chosen = " and ".join(f"{name} = {value}" for name, value in wanted.items())
        raise InputError(
            f"benchmark {benchmark.name}: {source} has no row with {chosen}."
            " Try: the file as its authors publish it"
        )
    # Of a user's own file with labels, those rows are taken that the benchmark is about.
    kind = "harmful" if benchmark.kind == "safety" else "harmless"
    of_source = Table(source, kept, table.notes)
    try:
        prompts = prompts_of_table(of_source, column=column, name=None if where else kind)
    except InputError as error:
        raise InputError(f"benchmark {benchmark.name}: {error}") from None
    references = {}
    if benchmark.metric == WIN_RATE:
        for row in kept:
            answer = row.values.get("output")
            references[str(row.values.get(column or ""))] = str(answer) if answer else ""
    return prompts, references


def _load_jailbreaks(benchmark: Benchmark, settings: EvaluateSettings, given: str | None) -> Loaded:
    """Stored attacks in the format of JailbreakBench's artifacts."""
    if given is None:
        raise InputError(
            "benchmark jailbreaks: no file of stored attacks is named. Try: an artifact of"
            " JailbreakBench, with --set evaluate.advanced.sources.jailbreaks=FILE"
        )
    path = Path(given).expanduser()
    content = read_json(path)
    attacks = content.get("jailbreaks") if isinstance(content, dict) else None
    if not isinstance(attacks, list) or not attacks:
        raise InputError(
            f"{given} holds no list of attacks. Try: a JSON file with"
            ' {"jailbreaks": [{"goal", "prompt"}, ...]}'
        )
    items = []
    for index, attack in enumerate(attacks):
        if not isinstance(attack, dict) or not isinstance(attack.get("goal"), str):
            raise InputError(
                f"{given}, jailbreak {index + 1}: 'goal' is not a string. Try: add one"
            )
        text = attack.get("prompt")
        if text is None:  # the attack failed for this goal
            continue
        if not isinstance(text, str) or not text.strip():
            raise InputError(
                f"{given}, jailbreak {index + 1}: 'prompt' is empty or not a string. Try: a text,"
                " or null where the attack failed"
            )
        prompt = Prompt(
            id=f"{path.stem}-{attack.get('index', index)}",
            messages=({"role": "user", "content": text},),
            category=str(attack.get("category") or ""),
        )
        items.append(replace(_item(benchmark, prompt), request=attack["goal"]))
    if not items:
        raise InputError(
            f"{given}: none of its {len(attacks)} jailbreaks has a prompt. Try: another artifact"
        )
    skipped = len(attacks) - len(items)
    source = _file_record(path, path.name)
    parameters = content.get("parameters")
    if isinstance(parameters, dict):
        source |= {k: str(parameters[k]) for k in ("method", "model") if parameters.get(k)}
    kept = [items[index] for index in evenly(len(items), settings.limit)]
    return Loaded(benchmark, kept, source, skipped)


def _load_harness(benchmark: Benchmark, settings: EvaluateSettings, given: str | None) -> Loaded:
    """The files of an lm-eval task, which lm-eval itself reads."""
    harness, hub = benchmark.harness, benchmark.hub
    assert harness is not None and hub is not None
    folder = given if given is not None else settings.data_dir
    if folder is None:
        return Loaded(benchmark, [], {"from": str(hub), "revision": hub.revision})
    files = _split_files(benchmark, Path(folder).expanduser(), bare=given is not None)
    if not files:
        expected = " and ".join(
            " or ".join(Path(path).name if given else path for path in paths)
            for paths in harness.files.values()
        )
        name = benchmark.name
        hint = "" if given else f", or set evaluate.advanced.sources.{name} to a folder with them"
        raise InputError(
            f"benchmark {name}: {folder} does not contain {expected}. Try: put them there{hint}"
        )
    for path in files.values():
        rows = read_rows(path)
        if hub.column not in rows[0].values:
            raise InputError(
                f"benchmark {benchmark.name}: {path} has no column '{hub.column}'."
                " Try: the file as its authors publish it"
            )
    main = next(iter(files.values()))
    shown = ", ".join(f"{path.parent.name}/{path.name}" for path in files.values())
    return Loaded(benchmark, [], {"from": shown, "sha256": sha256_file(main)}, files=files)


def _split_files(benchmark: Benchmark, folder: Path, bare: bool = False) -> dict[str, Path]:
    """{split: file}, or nothing where one is missing; `bare` looks for names without folders."""
    assert benchmark.harness is not None
    if bare and folder.is_file() and len(benchmark.harness.files) == 1:
        return dict.fromkeys(benchmark.harness.files, folder)
    found = {}
    for split, names in benchmark.harness.files.items():
        paths = [folder / (Path(name).name if bare else name) for name in names]
        existing = [path for path in paths if path.is_file()]
        if not existing:
            return {}
        found[split] = existing[0]
    return found
