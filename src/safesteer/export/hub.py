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
from pathlib import Path
from typing import Any

from safesteer.errors import InputError, SafeSteerError
from safesteer.runs import RunDirectory

OPTION = "--push-to-hub"
_TEXTS = (".json", ".jsonl", ".yaml", ".md", ".html")  # the files in which paths may stand


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
    """What was sent: its address, the files' names there, and whether everybody may read it."""

    url: str
    files: list[str]
    public: bool


def check_hub(target: HubTarget) -> None:
    """Raise InputError or SafeSteerError unless `target` can be pushed to; changes nothing."""
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
            return
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


def push(run: RunDirectory, target: HubTarget) -> Pushed:
    """Send a finished run in one commit; makes the repository if there is none.

    Raises InputError for a run that is not finished, and what `check_hub` raises.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # what is under way is said by the caller
    contents = hub_files(run, target)
    check_hub(target)
    with _explained(target.repo):
        api = HfApi()
        url = api.create_repo(target.repo, private=not target.public, exist_ok=True)
        api.create_commit(
            target.repo,
            [CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message=_message(run),
        )
    return Pushed(str(url), sorted(contents), target.public)


def hub_files(run: RunDirectory, target: HubTarget) -> dict[str, str | bytes]:
    """{name in the repository: content, or path of a large file}.

    The weights lie at the top, where transformers and peft look for them. Without
    ``target.transcripts`` no answer of a model is among them.
    """
    from safesteer.models.load import MERGED
    from safesteer.report.card import card_for_hub, hub_name
    from safesteer.report.write import CARD, PAGE

    weights = next((run.path / n for n in ("model", "adapter") if (run.path / n).is_dir()), None)
    if weights is None or not run.output_hashes("train") or not run.output_hashes("evaluate"):
        raise InputError(f"{run.path} is not finished; `safesteer run {run.path}` first")
    if not (run.path / CARD).is_file():
        raise InputError(f"{run.path} has no {CARD}; `safesteer report {run.path}` makes it again")
    found = {file.relative_to(weights).as_posix(): file for file in _files(weights)}
    names = ["config.yaml", "eval/base.json", "eval/teacher.json", "eval/aligned.json"]
    names += [name for stage in ("direction", "tokens") for name in run.output_hashes(stage)]
    if target.transcripts:
        names += [name for name in run.output_hashes("evaluate") if name not in names]
        names += [PAGE]
    found |= {name: run.path / name for name in names if (run.path / name).is_file()}

    settings = run.settings
    below = run.manifest["model"].get("adapter_of")
    places = _places([settings.model_dump(mode="json"), below])
    contents: dict[str, str | bytes] = {}
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


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


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
    own = [user, *(str(org.get("name")) for org in account.get("orgs", ()))]
    if owner.lower() not in (name.lower() for name in own):
        raise InputError(
            f"{OPTION} {repo}: '{owner}' is neither you ({user}) nor an organisation of yours; use"
            f" {user}/{repo.partition('/')[2]}"
        )


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
    """{absolute path: its last part} of every path in the settings; a GGUF file's folder too."""
    if isinstance(values, dict | list):
        inner = values.values() if isinstance(values, dict) else values
        return {path: name for value in inner for path, name in _places(value).items()}
    path = str(values).rpartition("=")[2]  # judges are NAME=FOLDER
    if not os.path.isabs(path):
        return {}
    paths = [path] + ([os.path.dirname(path)] if path.endswith(".gguf") else [])
    return {p: os.path.basename(os.path.normpath(p)) for p in paths if p.strip(os.sep)}


def _without(places: dict[str, str], text: str) -> str:
    for path in sorted(places, key=len, reverse=True):
        text = re.sub(rf"(?<![\w./-]){re.escape(path)}(?![\w-])", places[path], text)
    return text
