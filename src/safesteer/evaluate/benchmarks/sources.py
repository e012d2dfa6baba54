"""From a benchmark's name to its prompts: which file or hub data set, and which rows of it.

Everything that can be wrong here is found before a model is loaded. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safesteer.config.settings import EvaluateSettings
from safesteer.errors import InputError
from safesteer.evaluate.benchmarks.entry import HUB_PAGE, Benchmark, File, Hub
from safesteer.evaluate.benchmarks.forms import split_name
from safesteer.evaluate.benchmarks.table import find_benchmark
from safesteer.files import read_json, sha256_file
from safesteer.prompts import PROMPT_SETS, Prompt, PromptSet
from safesteer.prompts.load import prompts_of_rows
from safesteer.prompts.readers import Row, means_a_file, read_hub, read_rows


@dataclass(frozen=True)
class Item:
    """A prompt of a benchmark.

    Attributes:
        prompt: what the model is asked.
        request: what the judge takes the request to be; an attack hides it in the prompt.
        prefill: how the model's answer is begun for it.
        reference: an answer of somebody else, to compare with.
    """

    prompt: Prompt
    request: str
    prefill: str = ""
    reference: str = ""


@dataclass(frozen=True)
class Loaded:
    """A benchmark with its prompts.

    Attributes:
        benchmark: the table's entry.
        items: the prompts; none for what lm-eval reads itself.
        source: {"from", "sha256" of a file or "revision" of a hub data set}.
        skipped: rows without a prompt, such as attacks that were not found.
        files: {split: file} for lm-eval; empty where it reads the hub.
    """

    benchmark: Benchmark
    items: list[Item]
    source: dict[str, Any]
    skipped: int = 0
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What --benchmarks calls it."""
        return self.benchmark.name

    @property
    def sha256(self) -> str:
        """Of all that decides what is asked: an evaluation with another one is another."""
        files = {split: sha256_file(path) for split, path in self.files.items()}
        content = [[asdict(item) for item in self.items], self.source.get("revision"), files]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_benchmarks(
    names: Sequence[str], settings: EvaluateSettings, own: Mapping[str, PromptSet]
) -> list[Loaded]:
    """Read the benchmarks `names`, each once, in their order.

    `own` are our prompt sets, of which the test parts are asked. Raises InputError, one line: an
    unknown name, a file that is missing, empty or without its column, a hub data set that cannot be
    reached.
    """
    for name in settings.advanced.sources:
        try:
            find_benchmark(name)
        except InputError as error:
            raise InputError(f"evaluate.advanced.sources.{name}: {error}") from None
    if settings.data_dir is not None and not Path(settings.data_dir).expanduser().is_dir():
        raise InputError(f"evaluate.data_dir: there is no folder {settings.data_dir}")
    benchmarks = [find_benchmark(name) for name in dict.fromkeys(names)]
    return [_with_form(_load(benchmark, settings, own)) for benchmark in benchmarks]


def evenly(count: int, limit: int | None) -> list[int]:
    """`limit` places evenly spaced over `count`, the first included; all of them if None.

    The first rows of many files are all about one thing.
    """
    if limit is None or limit >= count:
        return list(range(count))
    return [place * count // limit for place in range(limit)]


def found_files(benchmark: Benchmark, folder: str | Path) -> list[Path]:
    """The files below `folder` that the benchmark would be read from; empty if one is missing."""
    folder = Path(folder).expanduser()
    if benchmark.harness is not None:
        return list(_split_files(benchmark, folder).values())
    path = _first(folder, [file.path for file in benchmark.files])
    return [path] if path else []


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
    rows, where, source = _rows(benchmark, settings, given)
    prompts, references = _prompts(benchmark, rows, where, source["from"])
    items = [
        _item(benchmark, prompt, references.get(prompt.text, ""))
        for prompt in (prompts[place] for place in evenly(len(prompts), settings.limit))
    ]
    return Loaded(benchmark, items, source)


def _with_form(loaded: Loaded) -> Loaded:
    form = loaded.benchmark.form.record
    return replace(loaded, source={**loaded.source, "form": form}) if form else loaded


def _item(benchmark: Benchmark, prompt: Prompt, reference: str = "") -> Item:
    form = benchmark.form
    asked = replace(prompt, messages=form.of(prompt.messages))
    return Item(asked, prompt.text, form.answer, reference)


def _rows(
    benchmark: Benchmark, settings: EvaluateSettings, given: str | None
) -> tuple[list[Row], Hub | File | None, dict[str, Any]]:
    """The rows, which entry's column and filter apply to them, and where they are from."""
    name = benchmark.name
    if given is not None and means_a_file(given):
        path = Path(given).expanduser()
        rows = read_rows(path)
        return rows, _fitting(benchmark, rows), _of_file(path, path.name)
    if given is not None:
        rows, revision = _read_hub(benchmark, given)
        return rows, _fitting(benchmark, rows), {"from": given, "revision": revision}
    if settings.data_dir is not None:
        folder = Path(settings.data_dir).expanduser()
        for file in benchmark.files:
            if (folder / file.path).is_file():
                rows = read_rows(folder / file.path)
                return rows, file, _of_file(folder / file.path, file.path)
        expected = " or ".join(str(folder / file.path) for file in benchmark.files)
        raise InputError(
            f"benchmark {name}: no file {expected}; put it there, or set"
            f" evaluate.advanced.sources.{name} to a file or a hub data set"
        )
    if benchmark.hub is None:
        raise InputError(
            f"benchmark {name} has no hub data set; give --data-dir DIR with"
            f" {benchmark.files[0].path} in it, or set evaluate.advanced.sources.{name} to a file"
        )
    hub = benchmark.hub
    if hub.file is not None:
        path = _download(benchmark, hub)
        # The hub's cache keeps a file in a folder named after its commit.
        return read_rows(path), hub, {"from": str(hub), "revision": path.parent.name}
    rows, revision = _read_hub(benchmark, str(hub))
    return rows, hub, {"from": str(hub), "revision": revision or hub.revision}


def _of_file(path: Path, shown: str) -> dict[str, Any]:
    return {"from": shown, "sha256": sha256_file(path)}


def _read_hub(benchmark: Benchmark, source: str) -> tuple[list[Row], str | None]:
    try:
        return read_hub(source)
    except InputError as error:
        raise _unreachable(benchmark, source, str(error)) from None


def _download(benchmark: Benchmark, hub: Hub) -> Path:
    from huggingface_hub import hf_hub_download

    assert hub.file is not None
    try:
        return Path(hf_hub_download(hub.id, hub.file, repo_type="dataset", revision=hub.revision))
    except Exception as error:  # unknown id, gated, no network: the library has a class for each
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise _unreachable(benchmark, str(hub), f"{hub} cannot be loaded ({reason})") from None


def _unreachable(benchmark: Benchmark, source: str, reason: str) -> InputError:
    name = benchmark.name
    here = [f"--data-dir DIR with {file.path} in it" for file in benchmark.files[:1]]
    other = " or ".join([*here, f"evaluate.advanced.sources.{name}=FILE"])
    if benchmark.gated and benchmark.hub is not None and benchmark.hub.id in source:
        return InputError(
            f"benchmark {name}: {benchmark.hub.id} is gated; ask for access at"
            f" {HUB_PAGE}{benchmark.hub.id} and run `hf auth login`, or give a file: {other}"
            f" ({reason.partition('; ')[0]})"
        )
    return InputError(f"benchmark {name}: {reason}: {other}")


def _fitting(benchmark: Benchmark, rows: list[Row]) -> Hub | File | None:
    """The entry's source whose columns a user's own file has; None: it is taken as it is."""
    columns = {name for row in rows for name in row.values}
    sources: Iterable[Hub | File] = [*([benchmark.hub] if benchmark.hub else []), *benchmark.files]
    return next(
        (s for s in sources if s.column in columns and set(s.where) <= columns),
        None,
    )


def _prompts(
    benchmark: Benchmark, rows: list[Row], where: Hub | File | None, source: str
) -> tuple[list[Prompt], dict[str, str]]:  # prompts, {prompt: somebody's answer}
    column = where.column if where else None
    wanted = dict(where.where) if where else {}
    columns = {name for row in rows for name in row.values}
    for name in wanted:
        if name not in columns:
            raise InputError(
                f"benchmark {benchmark.name}: {source} has no column '{name}', by which its rows"
                " are chosen"
            )
    kept = [row for row in rows if all(row.values.get(k) == v for k, v in wanted.items())]
    if not kept:
        chosen = " and ".join(f"{name} = {value}" for name, value in wanted.items())
        raise InputError(f"benchmark {benchmark.name}: {source} has no row with {chosen}")
    kept = [_first_turn(row, column) for row in kept]
    try:
        prompts = prompts_of_rows(kept, source, column=column)
    except InputError as error:
        raise InputError(f"benchmark {benchmark.name}: {error}") from None
    references = {}
    if benchmark.metric == "win_rate":
        for row in kept:
            answer = row.values.get("output")
            references[str(row.values.get(column or ""))] = str(answer) if answer else ""
    return prompts, references


def _first_turn(row: Row, column: str | None) -> Row:
    """SORRY-Bench keeps a prompt as a list of one string."""
    value = row.values.get(column or "")
    if isinstance(value, list) and value and isinstance(value[0], str):
        return replace(row, values={**row.values, column or "": value[0]})
    return row


def _load_jailbreaks(benchmark: Benchmark, settings: EvaluateSettings, given: str | None) -> Loaded:
    """Stored attacks in the format of JailbreakBench's artifacts."""
    if given is None:
        raise InputError(
            "benchmark jailbreaks: name a file of stored attacks, such as an artifact of"
            " JailbreakBench, with --set evaluate.advanced.sources.jailbreaks=FILE"
        )
    path = Path(given).expanduser()
    content = read_json(path)
    attacks = content.get("jailbreaks") if isinstance(content, dict) else None
    if not isinstance(attacks, list) or not attacks:
        raise InputError(f'{given}: expected {{"jailbreaks": [{{"goal", "prompt"}}, ...]}}')
    items = []
    for place, attack in enumerate(attacks):
        if not isinstance(attack, dict) or not isinstance(attack.get("goal"), str):
            raise InputError(f"{given}, jailbreak {place + 1}: it has no text 'goal'")
        text = attack.get("prompt")
        if text is None:  # the attack found none for this goal
            continue
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{given}, jailbreak {place + 1}: its 'prompt' is no text")
        prompt = Prompt(
            id=f"{path.stem}-{attack.get('index', place)}",
            messages=({"role": "user", "content": text},),
            category=str(attack.get("category") or ""),
        )
        items.append(replace(_item(benchmark, prompt), request=attack["goal"]))
    if not items:
        raise InputError(f"{given}: none of its {len(attacks)} jailbreaks has a prompt")
    skipped = len(attacks) - len(items)
    parameters = content.get("parameters")
    named = parameters if isinstance(parameters, dict) else {}
    source = _of_file(path, path.name) | {
        key: str(named[key]) for key in ("method", "model") if named.get(key)
    }
    kept = [items[place] for place in evenly(len(items), settings.limit)]
    return Loaded(benchmark, kept, source, skipped)


def _load_harness(benchmark: Benchmark, settings: EvaluateSettings, given: str | None) -> Loaded:
    """Find the files of a task; what they hold is lm-eval's to read."""
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
        hint = (
            "" if given else f", or set evaluate.advanced.sources.{name} to a folder that has them"
        )
        raise InputError(f"benchmark {name}: {folder} does not hold {expected}; put it there{hint}")
    for path in files.values():
        rows = read_rows(path)
        if hub.column not in rows[0].values:
            raise InputError(f"benchmark {benchmark.name}: {path} has no column '{hub.column}'")
    main = next(iter(files.values()))
    shown = ", ".join(f"{path.parent.name}/{path.name}" for path in files.values())
    return Loaded(benchmark, [], {"from": shown, "sha256": sha256_file(main)}, files=files)


def _split_files(benchmark: Benchmark, folder: Path, bare: bool = False) -> dict[str, Path]:
    """{split: file}, or nothing where one is missing. `bare`: the names without their folder."""
    assert benchmark.harness is not None
    found = {}
    for split, paths in benchmark.harness.files.items():
        path = _first(folder, [Path(path).name for path in paths] if bare else list(paths))
        if path is None and bare and folder.is_file() and len(benchmark.harness.files) == 1:
            path = folder
        if path is None:
            return {}
        found[split] = path
    return found


def _first(folder: Path, paths: Sequence[str]) -> Path | None:
    return next((folder / path for path in paths if (folder / path).is_file()), None)
