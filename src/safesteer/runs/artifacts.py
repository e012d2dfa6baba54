"""What a run holds, loaded when it is first asked for: model, direction, teacher, tokens, student.

Reads the files that the stages wrote; runs no stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from safesteer import distributed
from safesteer.config.settings import ModelSettings, Settings
from safesteer.direction.vector import Direction
from safesteer.errors import InputError
from safesteer.events import Reporter
from safesteer.files import load_tensors, read_json
from safesteer.inference.variant import ModelVariant
from safesteer.models.devices import pick_device, pick_dtype
from safesteer.models.load import ChatModel, load_model
from safesteer.models.lora_dtype import compute_in_model_dtype
from safesteer.prompts import PromptSet, load_prompt_sets
from safesteer.runs.directory import RunDirectory
from safesteer.runs.target import Target
from safesteer.teacher import Teacher, make_teacher


class RunArtifacts:
    """A run's model and prompts, and what its finished stages left.

    Args:
        run: a run directory, open or not.
        reporter: told what happens on the main process.
    """

    def __init__(self, run: RunDirectory, reporter: Reporter | None = None) -> None:
        self.run = run
        self.settings: Settings = run.settings
        self.reporter = reporter if reporter and distributed.is_main() else Reporter()
        self._student: Any = None

    @cached_property
    def model(self) -> ChatModel:
        """The base model."""
        self.reporter.stage("model", f"loading {self.settings.model.id}")
        model = load_model(self.model_settings)
        thinking = model.chat.thinking
        record = {} if thinking is None else {"thinking": thinking.record}
        known = self.run.manifest["model"]
        if self.run.is_open and known.get("thinking") != record.get("thinking"):
            known.pop("thinking", None)
            known.update(record)
            self.run.save_manifest()
        return model

    @cached_property
    def model_settings(self) -> ModelSettings:
        """How the model is loaded. `auto` measures, and a run keeps what it measured first."""
        settings = self.settings.model
        if settings.dtype != "auto":
            return settings
        dtype = self.run.manifest["model"].get("dtype")
        if dtype is None:
            dtype = str(pick_dtype("auto", pick_device(settings.device))).removeprefix("torch.")
            self.run.manifest["model"]["dtype"] = dtype
            if self.run.is_open:
                self.run.save_manifest()
        return settings.model_copy(update={"dtype": dtype})

    @cached_property
    def prompts(self) -> dict[str, PromptSet]:
        """The harmful, harmless and borderline sets."""
        return load_prompt_sets(self.settings.prompts, self.settings.seed)

    def load_direction(self) -> Direction:
        """The direction that the run holds.

        Raises InputError when the stage has not been run.
        """
        folder = self.run.path / "direction"
        self._require("direction")
        facts = read_json(folder / "direction.json")
        vector = load_tensors(folder / "direction.safetensors")["direction"]
        return Direction(
            vector, facts["layer"], facts["coefficient"], facts["method"], facts["position"]
        )

    def load_teacher(self) -> Teacher:
        """The safety teacher that the settings and the run's direction make."""
        return make_teacher(
            self.settings.teacher, self.load_direction() if self.settings.teacher.steers else None
        )

    def load_tokens(self) -> list[int]:
        """Ids of the safety tokens that the run holds."""
        self._require("tokens")
        content = read_json(self.run.path / "tokens" / "safety_tokens.json")
        return [token["id"] for token in content["tokens"]]

    def load_student(self) -> Any:
        """The aligned model: a PEFT model around the base, or a model with its own weights."""
        if self._student is None:
            self._require("train")
            adapter = self.run.path / "adapter"
            if adapter.is_dir():
                from peft import PeftModel

                loaded = PeftModel.from_pretrained(self.model.model, adapter).eval()
                self._student = compute_in_model_dtype(loaded)
            else:
                aligned = self.model_settings.model_copy(
                    update={"id": str(self.run.path / "model"), "revision": None}
                )
                self._student = load_model(aligned).model
        return self._student

    def variant(self, name: str) -> ModelVariant:
        """One of base, teacher and aligned, ready to answer."""
        if name == "aligned":
            return ModelVariant(name, self.model, self.load_student())
        # An adapter changes the base's modules in place: where it is loaded, only the PEFT model
        # around them can switch it off.
        loaded = self._student
        runner = loaded if hasattr(loaded, "disable_adapter") else self.model.model
        return ModelVariant(
            name, self.model, runner, self.load_teacher() if name == "teacher" else Teacher()
        )

    def _require(self, stage: str) -> None:
        if not self.run.output_hashes(stage):
            raise InputError(
                f"{self.run.path} has no finished stage '{stage}';"
                f" run `safesteer {stage} {self.run.path}` or `safesteer run` first"
            )


def load_variants(
    target: Target, names: Sequence[str] = ("aligned",), reporter: Reporter | None = None
) -> list[ModelVariant]:
    """The variants `names` of a run, or the one model that `target` is.

    Raises InputError for a run in which they are not there yet, and for base or teacher of a plain
    model.
    """
    reporter = reporter or Reporter()
    if target.is_run:
        run = RunDirectory.load(target.path)
        run.settings = target.settings
        pipeline = RunArtifacts(run, reporter)
        # The aligned one first: its adapter changes the modules that the others run on.
        order = sorted(names, key=lambda name: name != "aligned")
        variants = {name: pipeline.variant(name) for name in order}
        return [variants[name] for name in names]
    if "teacher" in names:
        raise InputError(
            f"{target.settings.model.id} is a model and has no teacher; name the folder of a run"
        )
    reporter.stage("model", f"loading {target.settings.model.id}")
    model = load_model(target.settings.model)
    return [ModelVariant("model", model, model.model)]
