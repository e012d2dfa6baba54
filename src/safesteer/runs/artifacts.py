"""Outputs of a run: base model, prompts, direction, teacher, safety tokens and student.

Each is loaded when it is first asked for. Nothing here writes into the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from safesteer import distributed
from safesteer.config.settings import ModelSettings, Settings
from safesteer.direction.vector import Direction
from safesteer.errors import InputError
from safesteer.events import Reporter
from safesteer.files import load_tensors, read_json
from safesteer.inference.variant import ModelVariant
from safesteer.models.chat import ChatRenderer, Message
from safesteer.models.load import ChatModel, load_model
from safesteer.models.lora_dtype import compute_in_model_dtype
from safesteer.models.tokenizer import load_chat
from safesteer.models.weights import load_adapter
from safesteer.prompts import PromptSet, load_prompt_sets
from safesteer.runs.directory import RunDirectory
from safesteer.runs.manifest import run_date
from safesteer.runs.target import Target
from safesteer.teacher import Teacher, make_teacher

REPAIRS, REPAIR_ANSWERS = "repairs/repairs.json", "repairs/answers.jsonl"


def changed_base(model_id: str, sha256: str, recorded: str) -> str:
    """The words for a base whose hash is no longer the one that the run recorded."""
    return (
        f"{model_id} is no longer the model that this run started from: its hash is"
        f" {sha256[:12]}, and the run's {recorded[:12]}"
    )


class RunArtifacts:
    """A run's model and prompts, and the outputs of its finished stages.

    Args:
        settings: in place of the run's own, as a command may change them.
        prompts: the run's prompt sets; read when first used if None.
    """

    def __init__(
        self,
        run: RunDirectory,
        reporter: Reporter | None = None,
        *,
        settings: Settings | None = None,
        prompts: Mapping[str, PromptSet] | None = None,
    ) -> None:
        self.run = run
        self.settings = settings or run.settings
        self.reporter = reporter if reporter and distributed.is_main() else Reporter()
        if prompts is not None:
            self.prompts = dict(prompts)

    @cached_property
    def chat(self) -> ChatRenderer:
        """The renderer of its chats, which needs no weights; it reads the date of the run."""
        return load_chat(self.settings.model, run_date(self.run.manifest))

    @cached_property
    def model(self) -> ChatModel:
        """The base model."""
        self.reporter.stage("model", f"loading {self.settings.model.id}")
        model = load_model(self.model_settings, chat=self.chat)
        recorded = self.run.manifest["model"].get("sha256")
        if model.sha256 and recorded and model.sha256 != recorded:
            changed = changed_base(self.settings.model.id, model.sha256, recorded)
            raise InputError(
                f"{self.run.path}: {changed}. Try: bring the old files back, or start another run"
            )
        return model

    @cached_property
    def student(self) -> Any:
        """The aligned model: a PEFT model around the base, or a model with its own weights."""
        self._require("train")
        adapter = self.run.path / "adapter"
        if adapter.is_dir():
            return compute_in_model_dtype(load_adapter(self.model.model, adapter).eval())
        trained = {"id": str(self.run.path / "model"), "revision": None}
        trained_settings = self.model_settings.model_copy(update=trained)
        return load_model(trained_settings, chat=self.chat).model

    def unload(self) -> None:
        """Drop the base and the student from memory; the next use loads them again."""
        for name in ("model", "student"):
            self.__dict__.pop(name, None)

    @property
    def model_settings(self) -> ModelSettings:
        """How the model is loaded: dtype `auto` is the one that the run measured first."""
        dtype = self.run.manifest["model"].get("dtype")
        if self.settings.model.dtype != "auto" or dtype is None:
            return self.settings.model
        return self.settings.model.model_copy(update={"dtype": dtype})

    @cached_property
    def prompts(self) -> dict[str, PromptSet]:
        """The harmful, harmless and borderline sets."""
        return load_prompt_sets(self.settings.prompts, self.settings.seed)

    def load_direction(self) -> Direction:
        """The direction of the run."""
        folder = self.run.path / "direction"
        self._require("direction")
        facts = read_json(folder / "direction.json")
        vector = load_tensors(folder / "direction.safetensors")["direction"]
        return Direction(
            vector, facts["layer"], facts["coefficient"], facts["method"], facts["position"]
        )

    def load_teacher(self) -> Teacher:
        """The safety teacher, made of the settings and the run's direction."""
        return make_teacher(
            self.settings.teacher, self.load_direction() if self.settings.teacher.steers else None
        )

    def load_tokens(self) -> list[int]:
        """The ids of the safety tokens, [K]."""
        self._require("tokens")
        content = read_json(self.run.path / "tokens" / "safety_tokens.json")
        return [token["id"] for token in content["tokens"]]

    def load_repairs(self) -> dict[str, Any] | None:
        """The wrong refusals that training repairs, repairs.json; None where it repairs none."""
        if self.settings.train.wrong_refusals == "keep":
            return None
        self._require("repairs")
        content: dict[str, Any] = read_json(self.run.path / REPAIRS)
        return content

    def variant(self, name: str) -> ModelVariant:
        """The base, the teacher or the aligned model, ready to answer."""
        if name == "aligned":
            return ModelVariant(name, self.model, self.student)
        # An adapter changes the base's modules in place: once it is loaded, only the PEFT model
        # around them can switch it off.
        loaded = self.__dict__.get("student")
        runner = loaded if hasattr(loaded, "disable_adapter") else self.model.model
        return ModelVariant(
            name, self.model, runner, self.load_teacher() if name == "teacher" else Teacher()
        )

    def _require(self, stage: str) -> None:
        """Raise InputError unless `stage` is done and its outputs are unchanged."""
        if not self.run.output_hashes(stage):
            raise InputError(
                f"{self.run.path}: the stage '{stage}' is not finished. Try: `safesteer {stage}"
                f" {self.run.path}`, or `safesteer run`"
            )
        self.run.check_outputs(stage)


def load_variants(
    target: Target,
    names: Sequence[str] = ("aligned",),
    reporter: Reporter | None = None,
    *,
    conversations: Iterable[Sequence[Message]] = (),
    now: datetime | None = None,
) -> list[ModelVariant]:
    """Load the variants `names` of a run, or the one model that `target` is.

    Args:
        target: the run or the model.
        names: base, teacher or aligned, for a run.
        reporter: receives progress.
        conversations: rendered before the weights are loaded, so that what the template cannot
            render is found first.
        now: the time that a model's template reads; a run has its own.
    """
    reporter = reporter or Reporter()
    if target.is_run:
        run = RunDirectory.load(target.path)
        artifacts = RunArtifacts(run, reporter, settings=target.settings)
        _render_all(artifacts.chat, conversations)
        # The aligned one first: its adapter changes the modules that the others run on.
        order = sorted(names, key=lambda name: name != "aligned")
        variants = {name: artifacts.variant(name) for name in order}
        return [variants[name] for name in names]
    if "teacher" in names:
        raise InputError(
            f"{target.settings.model.id} is a model and has no teacher. Try: the folder of a run"
        )
    reporter.stage("model", f"loading {target.settings.model.id}")
    chat = load_chat(target.settings.model, now)
    _render_all(chat, conversations)
    model = load_model(target.settings.model, chat=chat)
    return [ModelVariant("model", model, model.model)]


def _render_all(chat: ChatRenderer, conversations: Iterable[Sequence[Message]]) -> None:
    for messages in conversations:
        chat.ids(messages)
