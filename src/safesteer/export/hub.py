"""Push of a finished run to the Hugging Face hub, and the checks before it.

`check_hub` makes all checks before a run trains. huggingface_hub reads the token from the
environment or from `hf auth login`; it is stored nowhere else. Paths of this machine are cut to
their last part.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from safesteer.config.load import dump_settings
from safesteer.config.settings import Settings
from safesteer.errors import InputError
from safesteer.export.hub_account import OPTION, check_account, explained, owner_of
from safesteer.export.local_paths import local_paths, shorten
from safesteer.models.files import MERGED
from safesteer.runs.directory import RunDirectory
from safesteer.runs.own_files import CARD, CONFIG_NAME, PAGE

_TEXTS = (".json", ".jsonl", ".yaml", ".md", ".html")  # files that may name paths
_WITH_PATHS = ("model", "prompts", "evaluate")  # sections of the settings that may name paths
# Files that a push may leave in a repository; `*` matches `/`, too. Other files are a person's.
_OF_A_RUN = (
    *("config.yaml", "report.html", "direction/*", "tokens/*", "eval/*"),
    *("adapter_*", "model.safetensors*", "model-*.safetensors", "config.json"),
    *("generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "chat_template*"),
    "additional_chat_templates/*",
)


@dataclass(frozen=True)
class HubTarget:
    """The repository of a push."""

    repo: str  # USER/NAME or ORGANIZATION/NAME
    public: bool = False  # whether anyone can read it
    transcripts: bool = False  # send all prompts and answers, and the report, which quotes some


@dataclass(frozen=True)
class Pushed:
    """A finished push."""

    url: str  # address of the repository
    files: list[str]  # this run's files there
    removed: list[str]  # files of an earlier push that this one deleted
    public: bool  # whether anyone can read it


def check_hub(target: HubTarget) -> set[str]:
    """Names of the files in the repository; none if it does not exist yet. Changes nothing.

    Raises InputError or SafeSteerError if `target` cannot be pushed to.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    owner = owner_of(target.repo)
    with explained(target.repo):
        api = HfApi()
        check_account(target.repo, owner, api.whoami())
        try:
            found = api.model_info(target.repo)
        except RepositoryNotFoundError:
            return set()
    if found.private and target.public:
        raise InputError(
            f"{OPTION} {target.repo} exists and is private. Try: without --public, or make it"
            " public on the hub first"
        )
    if not found.private and not target.public:
        raise InputError(
            f"{OPTION} {target.repo} exists and is public. Try: --public, or another name"
        )
    files = {file.rfilename for file in found.siblings or ()} - {".gitattributes"}
    if files and "safesteer" not in (found.tags or ()):
        raise InputError(
            f"{OPTION} {target.repo} has files that safesteer did not push. Try: another name"
        )
    return files


def push(run: RunDirectory, target: HubTarget) -> Pushed:
    """Send a finished run in one commit, to a new repository if there is none.

    The commit also deletes files of an earlier push that this run does not have. Other files stay.
    Raises InputError for an unfinished run, and the errors of `check_hub`.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # the caller reports progress
    contents = hub_files(run, target)
    left = sorted(
        name
        for name in check_hub(target) - contents.keys()
        if any(fnmatchcase(name, pattern) for pattern in _OF_A_RUN)
    )
    with explained(target.repo):
        api = HfApi()
        url = api.create_repo(target.repo, private=not target.public, exist_ok=True)
        api.create_commit(
            target.repo,
            [
                *(CommitOperationAdd(name, content) for name, content in contents.items()),
                *(CommitOperationDelete(name, is_folder=False) for name in left),
            ],
            commit_message=_message(run),
        )
    return Pushed(str(url), sorted(contents), left, target.public)


def hub_files(run: RunDirectory, target: HubTarget) -> dict[str, str | bytes]:
    """{name in the repository: content, or path of a large file}.

    The weights are at the top level, where transformers and peft expect them. Of the run's folders
    only the recorded outputs of its stages are sent; without ``target.transcripts`` no answer of a
    model is among them. Raises InputError for an unfinished run.
    """
    from safesteer.report.card import card_for_hub, hub_name  # imports torch

    files = _run_files(run, target)
    settings = run.settings
    values = settings.model_dump(mode="json")
    below = run.manifest["model"].get("adapter_of")
    paths = local_paths([*(values[section] for section in _WITH_PATHS), below])
    base_config = files.get("adapter_config.json") or files.get("config.json")
    if base_config is not None:  # libraries record the full path of the base
        config = json.loads(base_config.read_text("utf-8"))
        keys = ("base_model_name_or_path", "_name_or_path")
        paths |= local_paths([config.get(key) for key in keys])

    contents: dict[str, str | bytes] = {
        name: shorten(paths, path.read_text("utf-8")).encode()
        if path.suffix in _TEXTS and "tokenizer" not in name
        else str(path)
        for name, path in files.items()
    }
    # Shortened before it is written, because YAML folds long text.
    short = {**values, **{section: shorten(paths, values[section]) for section in _WITH_PATHS}}
    contents[CONFIG_NAME] = dump_settings(Settings.model_validate(short)).encode()
    card = card_for_hub((run.path / CARD).read_text("utf-8"), target.repo)
    contents[CARD] = shorten(paths, card).encode()
    base = hub_name(settings.model)
    if base and "adapter_config.json" in files:
        config = json.loads(files["adapter_config.json"].read_text("utf-8"))
        # The built-in model has another name on the hub.
        config["base_model_name_or_path"] = MERGED + base if below else base
        contents["adapter_config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    return contents


def _run_files(run: RunDirectory, target: HubTarget) -> dict[str, Path]:
    """{name in the repository: path} of the weights and results; InputError if unfinished."""
    files = {
        name.partition("/")[2]: run.path / name
        for name in run.output_hashes("train")
        if name.startswith(("model/", "adapter/"))
    }
    trained = files and all(path.is_file() for path in files.values())
    if not trained or not run.output_hashes("evaluate"):
        raise InputError(f"{run.path} is not finished. Try: `safesteer run {run.path}`")
    if not (run.path / CARD).is_file():
        raise InputError(f"{run.path} has no {CARD}. Try: `safesteer report {run.path}`")
    names = ["eval/base.json", "eval/teacher.json", "eval/aligned.json"]
    run.check_outputs("direction", "tokens", "train")
    run.check_outputs("evaluate", only=("",) if target.transcripts else tuple(names))
    names += [name for stage in ("direction", "tokens") for name in run.output_hashes(stage)]
    if target.transcripts:
        names += [name for name in run.output_hashes("evaluate") if name not in names]
        names.append(PAGE)
    return files | {name: run.path / name for name in names if (run.path / name).is_file()}


def _message(run: RunDirectory) -> str:
    """The commit message: kind of weights, base and revision."""
    from safesteer.report.card import hub_name

    base = run.settings.model
    name = hub_name(base) or os.path.basename(os.path.normpath(base.id))
    revision = run.manifest["model"].get("revision")
    weights = "full weights" if (run.path / "model").is_dir() else "LoRA adapter"
    return f"SafeSteer: {weights} for {name}" + (f" at {revision}" if revision else "")
