"""Hub accounts: write access to a repository, and errors of the hub in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from safesteer.errors import InputError, SafeSteerError, reason

OPTION = "--push-to-hub"
_TOKENS = "https://huggingface.co/settings/tokens"
_WRITE = {"repo.write", "repo.content.write"}  # rights of a fine-grained token


def owner_of(repo: str) -> str:
    """The user or organization in a repository's name; InputError if it is not USER/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    owner, slash, name = repo.partition("/")
    try:
        validate_repo_id(repo)
    except HFValidationError:
        slash = ""
    if not (owner and slash and name):
        raise InputError(
            f"{OPTION} {repo} is no name of a repository. Try: USER/NAME, of letters, digits, '-',"
            " '_' and '.'"
        )
    return owner


def check_account(repo: str, owner: str, account: dict[str, Any]) -> None:
    """Raise InputError unless the token may write to `repo`; `account` is the hub's `whoami`."""
    user = str(account.get("name"))
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise InputError(
            f"{OPTION} {repo}: the token of {user} is read-only. Try: a token with write access,"
            f" from {_TOKENS}"
        )
    if token.get("role") == "fineGrained" and not _may_write(repo, owner, token):
        raise InputError(
            f"{OPTION} {repo}: the fine-grained token of {user} has no write access there. Try:"
            f" give it write access to the repositories of {owner} at {_TOKENS}"
        )
    own = [user, *(str(org.get("name")) for org in account.get("orgs", ()))]
    if owner.lower() not in (name.lower() for name in own):
        raise InputError(
            f"{OPTION} {repo}: '{owner}' is neither you ({user}) nor an organization of yours."
            f" Try: {user}/{repo.partition('/')[2]}"
        )


def _may_write(repo: str, owner: str, token: dict[str, Any]) -> bool:
    """Whether a fine-grained token may write to `repo`; True where that is unknown.

    The hub lists rights that hold everywhere (``global``), and those for users, organizations and
    single repositories (``scoped``), by name. It documents neither, so that a missing list or name
    is no reason to refuse.
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
def explained(repo: str) -> Iterator[None]:
    """Turn errors of huggingface_hub and the network into one line.

    Raises InputError where the user can help, else SafeSteerError.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    where = f"{OPTION} {repo}"
    try:
        yield
    except SafeSteerError:
        raise
    except LocalTokenNotFoundError:
        raise InputError(
            f"{where}: no Hugging Face token. Try: `hf auth login`, or set HF_TOKEN to a token with"
            " write access"
        ) from None
    except OfflineModeIsEnabled:
        raise InputError(
            f"{where}: HF_HUB_OFFLINE is set, so that nothing can be sent. Try: unset it"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise InputError(
                f"{where}: the hub rejects the token. Try: `hf auth login --force`, or set HF_TOKEN"
                " to a valid token"
            ) from None
        if status in (403, 404):
            raise InputError(
                f"{where}: the token has no write access there ({status}). Try: another name, or"
                " another token"
            ) from None
        message = f": {error.server_message}" if error.server_message else ""
        raise SafeSteerError(f"{where}: the hub answers {status}{message}. Try: later") from error
    except ValueError as error:  # the hub rejects the card's header
        raise SafeSteerError(
            f"{where}: the hub rejects the card{reason(error)}. Try: correct README.md in the run"
        ) from error
    except Exception as error:  # every HTTP library raises its own classes
        raise SafeSteerError(
            f"{where}: cannot reach {constants.ENDPOINT}{reason(error)}. Try: check the network"
        ) from error
