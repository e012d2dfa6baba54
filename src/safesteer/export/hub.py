"""A finished run on the Hugging Face hub: what is sent, and what has to be right before it is.

Everything that can go wrong is looked at before a run trains (`check_hub`). The token is the one of
the environment or of `hf auth login`; huggingface_hub reads it, and it is written nowhere. Folders
of this machine that the settings name are cut down to their last part.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import markupsafe

from safesteer.config.load import dump_settings
from safesteer.config.settings import Settings
from safesteer.errors import InputError, SafeSteerError
from safesteer.runs.directory import CONFIG_NAME, RunDirectory

OPTION = "--push-to-hub"
_TEXTS = (".json", ".jsonl", ".yaml", ".md", ".html")  # the files in which paths may stand
_WITH_PATHS = ("model", "prompts", "evaluate")  # the sections of the settings that name them
# What a push may leave in a repository; `*` matches `/` too. A person's own files have other names.
_OF_A_RUN = (
    *("config.yaml", "report.html", "direction/*", "tokens/*", "eval/*"),
    *("adapter_*", "model.safetensors*", "model-*.safetensors", "config.json"),
    *("generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "chat_template*"),
    "additional_chat_templates/*",
)
_WRITE = {"repo.write", "repo.content.write"}  # rights of a fine-grained token


@dataclass(frozen=True)
class HubTarget:
    """Where a run goes.

    Attributes:
        repo: USER/NAME or ORGANISATION/NAME.
        public: whether everybody may read it.
        transcripts: send every prompt and answer as well, and the report, which shows some.
    """

    repo: str
    public: bool = False
    transcripts: bool = False


@dataclass(frozen=True)
class Pushed:
    """What was sent.

    Attributes:
        url: address of the repository.
        files: names of the files there that are of this run.
        removed: names of those that an earlier push left there and this one deleted.
        public: whether everybody may read it.
    """

    url: str
    files: list[str]
    removed: list[str]
    public: bool


def check_hub(target: HubTarget) -> set[str]:
    """The names of the files that are in the repository, none if it is yet to be made.

    Raises InputError or SafeSteerError unless `target` can be pushed to; changes nothing.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    owner = _owner(target.repo)
    with _explained(target.repo):
        api = HfApi()
        account = api.whoami()
        _check_account(target.repo, owner, account)
        try:
            found = api.model_info(target.repo)
        except RepositoryNotFoundError:
            return set()
    if found.private and target.public:
        raise InputError(
            f"{OPTION} {target.repo} is there and private; leave out --public, or make it public"
            " on the hub first"
        )
    if not found.private and not target.public:
        raise InputError(
            f"{OPTION} {target.repo} is there and public; add --public, or choose another name"
        )
    files = {file.rfilename for file in found.siblings or ()} - {".gitattributes"}
    if files and "safesteer" not in (found.tags or ()):
        raise InputError(
            f"{OPTION} {target.repo} holds something that safesteer did not push; choose another"
            " name"
        )
    return files


def push(run: RunDirectory, target: HubTarget) -> Pushed:
    """Send a finished run in one commit; makes the repository if there is none.

    The same commit deletes what an earlier push left there and is not among the new files; what no
    run writes stays. Raises InputError for a run that is not finished, and what `check_hub` raises.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # what is under way is said by the caller
    contents = hub_files(run, target)
    left = sorted(name for name in check_hub(target) - contents.keys() if _is_of_a_run(name))
    with _explained(target.repo):
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

    The weights lie at the top, where transformers and peft look for them; of the run's folders only
    what its stages recorded as theirs is sent. Without ``target.transcripts`` no answer of a model
    is among them.
    """
    from safesteer.models.files import MERGED
    from safesteer.report.card import card_for_hub, hub_name
    from safesteer.report.write import CARD, PAGE

    found = {
        name.partition("/")[2]: run.path / name
        for name in run.output_hashes("train")
        if name.startswith(("model/", "adapter/"))
    }
    whole = found and all(path.is_file() for path in found.values())
    if not whole or not run.output_hashes("evaluate"):
        raise InputError(f"{run.path} is not finished; `safesteer run {run.path}` first")
    if not (run.path / CARD).is_file():
        raise InputError(f"{run.path} has no {CARD}; `safesteer report {run.path}` makes it again")
    names = ["eval/base.json", "eval/teacher.json", "eval/aligned.json"]
    names += [name for stage in ("direction", "tokens") for name in run.output_hashes(stage)]
    if target.transcripts:
        names += [name for name in run.output_hashes("evaluate") if name not in names]
        names += [PAGE]
    found |= {name: run.path / name for name in names if (run.path / name).is_file()}

    settings = run.settings
    below = run.manifest["model"].get("adapter_of")
    values = settings.model_dump(mode="json")
    places = _places([*(values[section] for section in _WITH_PATHS), below])
    base_config = found.get("adapter_config.json") or found.get("config.json")
    if base_config is not None:  # libraries write the base's folder with its whole path
        config = json.loads(base_config.read_text("utf-8"))
        places |= _places([config.get(k) for k in ("base_model_name_or_path", "_name_or_path")])
    # YAML folds long text, so paths are cut before it is written.
    cut = {**values, **{section: _cut(places, values[section]) for section in _WITH_PATHS}}
    contents: dict[str, str | bytes] = {
        CONFIG_NAME: dump_settings(Settings.model_validate(cut)).encode()
    }
    for name, path in found.items():
        if path.suffix in _TEXTS and "tokenizer" not in name:
            contents[name] = _without(places, path.read_text("utf-8")).encode()
        else:
            contents[name] = str(path)
    card = card_for_hub((run.path / CARD).read_text("utf-8"), target.repo)
    contents[CARD] = _without(places, card).encode()
    base = hub_name(settings.model)
    if base and "adapter_config.json" in found:
        config = json.loads(found["adapter_config.json"].read_text("utf-8"))
        # The built-in model has another name there.
        config["base_model_name_or_path"] = MERGED + base if below else base
        contents["adapter_config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    return contents


def _is_of_a_run(name: str) -> bool:
    """Whether a push may have left a file of this name, as opposed to a person."""
    return any(fnmatchcase(name, pattern) for pattern in _OF_A_RUN)


def _message(run: RunDirectory) -> str:
    """The commit's: what it is, and of which base."""
    from safesteer.report.card import hub_name

    base = run.settings.model
    name = hub_name(base) or os.path.basename(os.path.normpath(base.id))
    revision = run.manifest["model"].get("revision")
    what = "full weights" if (run.path / "model").is_dir() else "LoRA adapter"
    return f"SafeSteer: {what} for {name}" + (f" at {revision}" if revision else "")


def _owner(repo: str) -> str:
    """The part before the slash; InputError for what is no USER/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    owner, slash, name = repo.partition("/")
    try:
        validate_repo_id(repo)
    except HFValidationError:
        slash = ""
    if not (owner and slash and name):
        raise InputError(
            f"{OPTION} {repo}: expected USER/NAME, of letters, digits, '-', '_' and '.'"
        )
    return owner


def _check_account(repo: str, owner: str, account: dict[str, Any]) -> None:
    """Whether the owner of the token may write where `repo` goes."""
    user = str(account.get("name"))
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise InputError(
            f"{OPTION} {repo}: the token of {user} may only read; make one that may write at"
            " https://huggingface.co/settings/tokens"
        )
    if token.get("role") == "fineGrained" and not _may_write(repo, owner, token):
        raise InputError(
            f"{OPTION} {repo}: the fine-grained token of {user} may not write there; give it write"
            f" access to the repositories of {owner} at https://huggingface.co/settings/tokens"
        )
    own = [user, *(str(org.get("name")) for org in account.get("orgs", ()))]
    if owner.lower() not in (name.lower() for name in own):
        raise InputError(
            f"{OPTION} {repo}: '{owner}' is neither you ({user}) nor an organisation of yours; use"
            f" {user}/{repo.partition('/')[2]}"
        )


def _may_write(repo: str, owner: str, token: dict[str, Any]) -> bool:
    """Whether a fine-grained token names a right to write to `repo`; True where it cannot be told.

    The hub lists rights that hold everywhere (``global``) and those of users, organisations and
    single repositories (``scoped``), by name; it documents neither, so what is missing or has no
    name is no reason to refuse.
    """
    rights = token.get("fineGrained")
    if not isinstance(rights, dict) or not isinstance(rights.get("scoped"), list):
        return True
    if _WRITE & set(rights.get("global") or ()):
        return True
    allowed = [
        (entry.get("entity") or {}).get("name")
        for entry in rights["scoped"]
        if _WRITE & set(entry.get("permissions") or ())
    ]
    return any(name is None or name.lower() in (owner.lower(), repo.lower()) for name in allowed)


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Whatever huggingface_hub and the network raise, as one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except SafeSteerError:
        raise
    except LocalTokenNotFoundError:
        raise InputError(
            f"{OPTION} {repo}: no Hugging Face token; `hf auth login`, or set HF_TOKEN to one that"
            " may write"
        ) from None
    except OfflineModeIsEnabled:
        raise InputError(
            f"{OPTION} {repo}: HF_HUB_OFFLINE is set, so nothing can be sent; unset it"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise InputError(
                f"{OPTION} {repo}: the hub does not take the token; `hf auth login --force`, or set"
                " HF_TOKEN to one that is valid"
            ) from None
        if status in (403, 404):
            raise InputError(
                f"{OPTION} {repo}: the hub does not let this token write there ({status});"
                " choose another name, or a token that may"
            ) from None
        said = f": {error.server_message}" if error.server_message else ""
        raise SafeSteerError(f"{OPTION} {repo}: the hub answers {status}{said}") from error
    except ValueError as error:  # the hub finds fault with the card's header
        raise SafeSteerError(f"{OPTION} {repo}: {error}") from error
    except Exception as error:  # every HTTP library has classes of its own
        raise SafeSteerError(
            f"{OPTION} {repo}: cannot reach {constants.ENDPOINT} ({type(error).__name__}: {error})"
        ) from error


def _places(values: Any) -> dict[str, str]:
    """{path: its last part} of every path in the settings, in each way in which a file may name it.

    A path is absolute or begins with `~`, `./` or `../`: `a/b` may as well be a name on the hub.
    The folder of a GGUF file is one too.
    """
    if isinstance(values, dict | list):
        inner = values.values() if isinstance(values, dict) else values
        return {path: name for value in inner for path, name in _places(value).items()}
    given = str(values).rpartition("=")[2]  # judges are NAME=FOLDER
    if not (os.path.isabs(given) or re.match(r"~[^/]*/|\.\.?/", given)):
        return {}
    name = os.path.basename(os.path.normpath(given))
    full = os.path.abspath(os.path.expanduser(given))
    found = {path: name for path in (given, os.path.normpath(given), full, os.path.realpath(full))}
    if given.endswith(".gguf"):
        folders = [os.path.dirname(path) for path in found]
        found |= {path: os.path.basename(path) for path in folders if len(path) > 1}
    return {
        written: short
        for path, name in found.items()
        if path.strip(os.sep) and name not in ("", ".", "..")
        for written, short in zip(_spellings(path), _spellings(name), strict=True)
    }


def _spellings(path: str) -> list[str]:
    """A path as text, JSON and HTML write it; libraries escape what is not ASCII in JSON."""
    in_json = [json.dumps(path, ensure_ascii=ascii)[1:-1] for ascii in (True, False)]
    return [*in_json, str(markupsafe.escape(path)), path]


def _cut(places: dict[str, str], values: Any) -> Any:
    """The same nested values with their texts cut."""
    if isinstance(values, dict):
        return {key: _cut(places, value) for key, value in values.items()}
    if isinstance(values, list):
        return [_cut(places, value) for value in values]
    return _without(places, values) if isinstance(values, str) else values


def _without(places: dict[str, str], text: str) -> str:
    for path in sorted(places, key=len, reverse=True):
        name = places[path].replace("\\", r"\\")
        text = re.sub(rf"(?<![\w./-]){re.escape(path)}(?![\w-])", name, text)
    return text
