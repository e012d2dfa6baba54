"""`safesteer run --push-to-hub` against a stand-in of the hub on this machine. (pytest tests/cli)

The stand-in speaks as much of the hub's protocol as a push needs and keeps what arrives: small
files inside the commit, large ones by the LFS protocol. huggingface_hub itself is the client.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants as constants
import pytest
import yaml
from markupsafe import escape

from safesteer.config.load import load_settings
from safesteer.errors import InputError, SafeSteerError
from safesteer.export.hub import HubTarget, check_hub, hub_files, push
from safesteer.runs.directory import RunDirectory

TOKEN = "hf_the_token_of_this_test"


class Hub:
    """What the stand-in knows, and what has arrived.

    Attributes:
        repos: {name: {"private": bool, "files": {path: content}, "tags": [...]}}.
        commits: (repository, message) of every commit.
        requests: (method, path) of every request.
        role: of the token: read, write or fineGrained.
        rights: of a token that is fineGrained.
        down: commits are answered with 503.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Any]] = {}
        self.commits: list[tuple[str, str]] = []
        self.requests: list[tuple[str, str]] = []
        self.large: dict[str, bytes] = {}
        self.role = "write"
        self.rights: Any = None
        self.down = False
        self.url = ""

    def add(self, name: str, private: bool, tags: list[str], *files: str) -> None:
        """A repository that is there before."""
        self.repos[name] = {"private": private, "tags": tags, "files": dict.fromkeys(files, b"")}

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON of one request."""
        self.requests.append((method, path))
        parts = path.split("/")
        if path.startswith("/large/"):
            self.large[parts[2]] = body
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/whoami-v2":
            token_facts = {"accessToken": {"role": self.role, "fineGrained": self.rights}}
            return 200, {"name": "me", "orgs": [{"name": "lab"}], "auth": token_facts}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            sent = json.loads(body)
            name = f"{sent['organization']}/{sent['name']}"
            if name in self.repos:
                return 409, {"error": "You already created it", "url": f"{self.url}/{name}"}
            private = sent.get("visibility") == "private" or sent.get("private") is True
            self.add(name, private, [])
            return 200, {"url": f"{self.url}/{name}"}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._upload(o) for o in _objects(body)]}
        name = "/".join(parts[3:5])
        if name not in self.repos:
            return 404, {"error": "Repository not found"}
        if parts[5:6] == ["preupload"]:
            return 200, {"files": [_mode(file) for file in json.loads(body)["files"]]}
        if parts[5:6] == ["commit"]:
            return (503, {"error": "down"}) if self.down else (200, self._commit(name, body))
        repo = self.repos[name]
        files = [{"rfilename": file} for file in repo["files"]]
        return 200, {
            "id": name,
            "private": repo["private"],
            "tags": repo["tags"],
            "siblings": files,
        }

    def _upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return {**wanted, "actions": {"upload": {"href": f"{self.url}/large/{wanted['oid']}"}}}

    def _commit(self, name: str, body: bytes) -> dict[str, str]:
        for line in body.splitlines():
            key, value = json.loads(line).values()
            if key == "header":
                self.commits.append((name, value["summary"]))
            elif key == "file":
                content = base64.b64decode(value["content"])
                self.repos[name]["files"][value["path"]] = content
            elif key == "deletedFile":
                del self.repos[name]["files"][value["path"]]
            elif key == "lfsFile":
                content = self.large[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                self.repos[name]["files"][value["path"]] = content
        self.repos[name]["tags"] = ["safesteer"]
        return {"commitUrl": f"{self.url}/{name}/commit/1", "commitOid": "1"}


def _objects(body: bytes) -> list[dict[str, Any]]:
    return list(json.loads(body)["objects"])


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    large = file["path"].endswith(".safetensors")
    mode = "lfs" if large else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The stand-in, named by the environment as any other hub would be, for this process too."""
    stand_in = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            token = self.headers.get("Authorization") or ""
            path = self.path.partition("?")[0]
            status, content = stand_in.answer(self.command, path, token, self.rfile.read(length))
            data = json.dumps(content).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_PUT = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stand_in.url = f"http://127.0.0.1:{server.server_address[1]}"
    environment = {
        "HF_ENDPOINT": stand_in.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield stand_in
    server.shutdown()
    server.server_close()


def right(kind: str, name: str | None, *permissions: str) -> dict[str, Any]:
    """One entry of a fine-grained token's scoped rights."""
    return {"entity": {"type": kind, "name": name}, "permissions": list(permissions)}


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """The finished run, to be changed."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def made_run(path: Path, weights: str = "adapter", **sections: Any) -> RunDirectory:
    """A run directory as a finished run leaves it, with next to nothing in its files."""
    settings = load_settings(**sections)
    base = {"base_model_name_or_path": os.path.abspath(settings.model.id)}
    stages = {
        "direction": {"direction/direction.json": "{}"},
        "tokens": {"tokens/safety_tokens.json": "{}"},
        "train": {
            f"{weights}/{'adapter_' if weights == 'adapter' else ''}config.json": json.dumps(base),
            f"{weights}/{'adapter_' * (weights == 'adapter')}model.safetensors": "numbers",
            "train/metrics.jsonl": "{}",
        },
        "evaluate": {
            "eval/aligned.json": json.dumps([os.path.expanduser(settings.prompts.harmful)]),
            "eval/samples/aligned.jsonl": "{}",
        },
    }
    model = {"id": settings.model.id, "revision": None, "sha256": "0" * 64}
    with RunDirectory.open(path, settings=settings, model=model) as run:
        for name, files in stages.items():
            with run.stage(name, {}) as stage:
                for file, text in files.items():
                    (path / file).parent.mkdir(parents=True, exist_ok=True)
                    (path / file).write_text(text, "utf-8")
                    stage.add_output(file)
    (path / "README.md").write_text(f'from_pretrained("{settings.model.id}")', "utf-8")
    (path / "report.html").write_text(str(escape(settings.model.id)), "utf-8")
    return RunDirectory.load(path)


def answers(run: Path) -> list[str]:
    """What the models of a run said, where it is long enough to be told from other text."""
    rows = [
        json.loads(line)
        for file in (run / "eval" / "samples").glob("*.jsonl")
        for line in file.read_text("utf-8").splitlines()
    ]
    return [row["completion"] for row in rows if len(row["completion"]) > 8]


def test_a_run_is_pushed_private_and_without_transcripts(hub, run, new_process, tiny_model_folder):
    outcome = new_process("run", run, "--push-to-hub", "me/safe")
    assert outcome.code == 0, outcome.err
    assert "private" in outcome.out and "without transcripts" in outcome.out
    repo = hub.repos["me/safe"]
    assert repo["private"] is True
    files = repo["files"]
    assert {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.yaml",
        "direction/direction.json",
        "direction/direction.safetensors",
        "eval/aligned.json",
        "eval/base.json",
        "eval/teacher.json",
        "tokenizer.json",
        "tokens/safety_tokens.json",
    } <= set(files)
    assert not [name for name in files if "samples" in name or "cache" in name or "html" in name]
    assert (
        files["adapter_model.safetensors"]
        == (run / "adapter" / "adapter_model.safetensors").read_bytes()
    )
    everything = b"\n".join(files.values()).decode("utf-8", "replace")
    said = answers(run)
    assert said and not [text for text in said if text in everything]
    assert hub.commits == [("me/safe", f"SafeSteer: LoRA adapter for {tiny_model_folder.name}")]
    # The card tells how to load it from there, and no folder of this machine is named anywhere.
    card = files["README.md"].decode()
    assert 'from_pretrained(base, "me/safe")' in card and "adapter/" not in card
    assert str(tiny_model_folder.parent) not in everything and str(run) not in everything
    assert yaml.safe_load(files["config.yaml"])["model"]["id"] == tiny_model_folder.name
    # The token is nowhere: not in what was printed, not in the run, not in what was sent.
    assert TOKEN not in outcome.out + outcome.err + everything
    for file in (file for file in run.rglob("*") if file.is_file()):
        assert TOKEN.encode() not in file.read_bytes(), file


def test_again_public_and_with_transcripts(hub, run, safesteer):
    outcome = safesteer("run", run, "--push-to-hub", "lab/safe", "--public", "--transcripts")
    assert outcome.code == 0, outcome.err
    assert hub.repos["lab/safe"]["private"] is False
    assert {"report.html", "eval/samples/aligned-harmful.jsonl"} <= set(
        hub.repos["lab/safe"]["files"]
    )
    assert "public" in outcome.out and "with transcripts" in outcome.out
    # A second push goes into the same repository, and never makes a private matter public.
    assert "--public" in safesteer("run", run, "--push-to-hub", "lab/safe").error
    assert safesteer("run", run, "--push-to-hub", "lab/safe", "--public").code == 0
    assert len(hub.commits) == 2


def test_everything_is_checked_before_the_work_begins(
    hub, safesteer, tiny_model_folder, tmp_path, monkeypatch
):
    hub.add("me/mine", True, ["llama"], "config.json", ".gitattributes")
    hub.add("me/open", False, ["safesteer"], "README.md")
    hub.add("me/closed", True, ["safesteer"], "README.md")
    hub.add("other/theirs", False, ["safesteer"], "README.md")

    def refused(repo: str, *more: str) -> str:
        path = tmp_path / "new"
        outcome = safesteer("run", tiny_model_folder, "-o", path, "--push-to-hub", repo, *more)
        assert outcome.code == 2 and not path.exists()
        return outcome.error

    assert "Try: USER/NAME" in refused("name")
    for name in ("me/", "/name", "a/b/c", "me/na me", "me/x--y", "me/x.git"):
        with pytest.raises(InputError, match="Try: USER/NAME"):
            check_hub(HubTarget(name))
    assert hub.requests == []  # a malformed name is nothing to ask the hub about
    assert "'other' is neither you (me)" in refused("other/theirs")
    assert "safesteer did not push" in refused("me/mine")
    assert "exists and is public. Try: --public" in refused("me/open")
    assert "exists and is private. Try: without --public" in refused("me/closed", "--public")
    assert not hub.commits and "me/new" not in hub.repos
    assert "--push-to-hub" in safesteer("run", tiny_model_folder, "--public").error


def test_tokens_and_networks_that_do_not_do(hub, tmp_path, monkeypatch):
    def refused() -> str:
        with pytest.raises(SafeSteerError) as raised:
            check_hub(HubTarget("me/new"))
        assert TOKEN not in str(raised.value)
        return str(raised.value)

    check_hub(HubTarget("me/new"))
    assert hub.repos == {}  # asking makes nothing
    hub.role = "read"
    assert "is read-only" in refused()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "rejects the token" in refused()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "no Hugging Face token" in refused()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused()


def test_no_network(hub, safesteer, tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    outcome = safesteer("run", tiny_model_folder, "-o", tmp_path / "new", "--push-to-hub", "me/new")
    assert outcome.code == 1 and "cannot reach http://127.0.0.1:9" in outcome.error
    assert not (tmp_path / "new").exists()


def test_a_push_that_fails_leaves_the_run_whole(hub, run, safesteer):
    hub.down = True
    outcome = safesteer("run", run, "--push-to-hub", "me/safe")
    assert outcome.code == 1 and "the hub answers 503" in outcome.error
    hub.down = False
    assert safesteer("run", run, "--push-to-hub", "me/safe").code == 0
    assert len(hub.commits) == 1


def test_nothing_is_sent_unless_asked(hub, run, safesteer):
    assert safesteer("run", run).code == 0
    assert hub.requests == []


def test_what_is_not_finished_or_has_no_card(run):
    (run / "README.md").unlink()
    with pytest.raises(InputError, match="safesteer report"):
        hub_files(RunDirectory.load(run), HubTarget("me/safe"))
    (run / "README.md").write_text("A card of my own.", "utf-8")
    files = hub_files(RunDirectory.load(run), HubTarget("me/safe"))
    assert files["README.md"] == b"A card of my own."
    shutil.rmtree(run / "adapter")
    with pytest.raises(InputError, match="not finished"):
        hub_files(RunDirectory.load(run), HubTarget("me/safe"))


def test_a_later_push_leaves_nothing_of_an_earlier_one(hub, tmp_path):
    """Transcripts are gone once a push has none; what a person added stays."""
    run = made_run(tmp_path / "run")
    push(run, HubTarget("me/safe", transcripts=True))
    repo = hub.repos["me/safe"]
    transcripts = {"report.html", "eval/samples/aligned.jsonl"}
    assert transcripts <= set(repo["files"])
    repo["private"] = False
    own = dict.fromkeys((".gitattributes", "LICENSE", "notes/plan.md"), b"mine")
    repo["files"] |= own
    pushed = push(run, HubTarget("me/safe", public=True))
    assert pushed.removed == sorted(transcripts)
    assert set(repo["files"]) == {*own, *pushed.files} and not transcripts & set(pushed.files)
    assert push(run, HubTarget("me/safe", public=True)).removed == []


def test_a_model_takes_the_place_of_an_adapter(hub, tmp_path):
    """transformers would load an adapter_config.json that is left beside the weights."""
    push(made_run(tmp_path / "lora"), HubTarget("me/safe"))
    pushed = push(made_run(tmp_path / "full", "model"), HubTarget("me/safe"))
    assert pushed.removed == ["adapter_config.json", "adapter_model.safetensors"]
    files = set(hub.repos["me/safe"]["files"])
    assert {"config.json", "model.safetensors"} <= files and not files & set(pushed.removed)


def test_only_what_the_training_wrote_is_sent(tmp_path):
    run = made_run(tmp_path / "run")
    (tmp_path / "run" / "adapter" / "notes.txt").write_text("for me alone")
    assert "notes.txt" not in hub_files(run, HubTarget("me/safe"))


@pytest.mark.parametrize(
    "folder",
    [
        "/Users/Jane Doe/Library/Application Support/com.example.a name/that is/longer/than a line",
        "/home/jane-jürgen/models",
        '/home/jane\'s & "co"/models',
        "~/jane/models",
        "../jane/models",
    ],
)
@pytest.mark.parametrize("last", ["größe", "file.jsonl", "weights.gguf"])
def test_no_folder_of_this_machine_is_sent(tmp_path, folder, last):
    """Whatever its name, and however a file writes it."""
    place = f"{folder}/{last}"
    run = made_run(
        tmp_path / "run",
        model={"id": place},
        prompts={"harmful": place},
        evaluate={"judges": [f"guard={place}"], "advanced": {"sources": {"harmbench": place}}},
        teacher={"advanced": {"system_prompt": "/no_think Answer harmless/useful requests."}},
    )
    files = hub_files(run, HubTarget("me/safe", transcripts=True))
    for name, content in files.items():
        text = (Path(content).read_bytes() if isinstance(content, str) else content).decode()
        assert "jane" not in text.lower() and "~" not in text, name
        assert os.path.expanduser("~/") not in text, name
    settings = yaml.safe_load(files["config.yaml"])
    assert settings["model"]["id"] == settings["prompts"]["harmful"] == last
    assert settings["evaluate"]["judges"] == [f"guard={last}"]
    assert settings["teacher"]["advanced"]["system_prompt"].startswith("/no_think ")
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == last


@pytest.mark.parametrize(
    ("rights", "taken"),
    [
        ({"global": ["repo.write"], "scoped": []}, True),
        ({"global": [], "scoped": [right("user", "me", "repo.content.read", "repo.write")]}, True),
        ({"global": [], "scoped": [right("model", "me/new", "repo.write")]}, True),
        ({"global": [], "scoped": [right("model", None, "repo.write")]}, True),
        (None, True),  # the hub does not say
        ({"global": ["discussion.write"], "scoped": []}, False),
        ({"global": [], "scoped": [right("user", "me", "repo.content.read")]}, False),
        ({"global": [], "scoped": [right("org", "lab", "repo.write")]}, False),
        ({"global": [], "scoped": [right("model", "me/other", "repo.write")]}, False),
    ],
)
def test_the_rights_of_a_fine_grained_token(hub, rights, taken):
    """Write access that it does not have is said before the training."""
    hub.role, hub.rights = "fineGrained", rights
    if taken:
        check_hub(HubTarget("me/new"))
        return
    with pytest.raises(InputError, match="fine-grained token of me has no write access there"):
        check_hub(HubTarget("me/new"))
