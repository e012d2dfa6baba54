"""Command lines for a run in vLLM, Ollama, llama.cpp and lm-eval; nothing is executed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safesteer.config.settings import Settings
from safesteer.errors import InputError
from safesteer.models.files import BUILTIN, locate, short_name
from safesteer.models.quantization import loaded_bits
from safesteer.report.card import lora_options

_LM_EVAL = "--tasks ifeval,gsm8k --apply_chat_template --batch_size auto"


def commands(run: Path, settings: Settings, base: Mapping[str, Any] | None = None) -> str:
    """Shell lines, each group under a comment that names it.

    `base` is the run's model as in its manifest. A model that thinks gets its template arguments;
    where the base is an adapter, the tools get merged weights. Raises InputError for a run that is
    not trained.
    """
    if not (run / "model").is_dir() and not (run / "adapter").is_dir():
        raise InputError(f"{run} is not trained. Try: `safesteer train {run}`")
    base = base or {}
    made = _Commands(run, settings, base.get("thinking"), bool(base.get("adapter_of")))
    parts = [made.appended(), made.vllm(), made.ollama(), made.own_base(), made.lm_eval()]
    if settings.teacher.steers and not made.on_adapter:
        parts.append(made.teacher())
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


@dataclass(frozen=True)
class _Commands:
    """A run as the tools take it."""

    run: Path  # folder of the run
    settings: Settings  # of the run
    thinking: Mapping[str, Any] | None  # the manifest's record of a model that thinks, else None
    on_adapter: bool  # whether the run's base is itself an adapter

    @property
    def name(self) -> str:
        return f"{short_name(self.settings.model.id)}-safesteer".lower()

    @property
    def full(self) -> bool:
        """Whether all weights were trained."""
        return (self.run / "model").is_dir()

    @property
    def gguf(self) -> bool:
        """Whether the base is a GGUF file, on which vLLM puts no adapter."""
        model = self.settings.model.id
        return model == BUILTIN or model.endswith(".gguf")

    @property
    def quantized(self) -> bool:
        """Whether the base is loaded in 8 or 4 bits. A hub model is not looked up."""
        return loaded_bits(self.settings.model, "folder", Path(self.settings.model.id)) != "none"

    @property
    def merged(self) -> bool:
        """Whether vLLM and lm-eval need merged weights, since they cannot load the base."""
        return self.on_adapter or self.quantized

    @property
    def template_kwargs(self) -> dict[str, Any]:
        given = self.settings.model.template_kwargs
        return given if self.thinking is None else dict(self.thinking["template_kwargs"])

    def appended(self) -> list[str]:
        """A note on text that the chat template cannot append by itself."""
        if self.thinking is None or not self.thinking["appended"]:
            return []
        return [
            "# The run's answers follow an empty thinking block, which the chat template cannot"
            " close by itself.",
            f"# Append {self.thinking['appended']!r} to its prompts. Without it the model thinks"
            " first, which the run did not measure.",
        ]

    def vllm(self) -> list[str]:
        kwargs = self.template_kwargs
        template = ["--default-chat-template-kwargs", json.dumps(kwargs)] if kwargs else []
        named = ["--served-model-name", self.name, *template]
        lines = ["# vLLM: an OpenAI-compatible server"]
        if self.full:
            return [*lines, _line("vllm serve", self.run / "model", *named)]
        merged = f"{self.name}-merged"
        lines.append(_line("safesteer export", self.run, "--format merged --output", merged))
        lines.append(_line("vllm serve", merged, *named))
        if self.gguf or self.merged:
            return lines
        adapter, model = self.run / "adapter", self.settings.model
        rank = json.loads((adapter / "adapter_config.json").read_text("utf-8"))["r"]
        revision = f"--revision {model.revision}" if model.revision else ""
        options = [f"{revision} {lora_options(rank)}", f"{self.name}={adapter}", *template]
        return [
            *lines,
            "# vLLM: base and aligned model from one set of weights",
            _line("vllm serve", model.id, *options),
        ]

    def ollama(self) -> list[str]:
        file, kwargs, thinking = f"{self.name}.gguf", self.template_kwargs, self.thinking
        server = "llama-server -m FILE --jinja"
        server += f" --chat-template-kwargs '{json.dumps(kwargs)}'" if kwargs else ""
        think = "" if thinking is None else f"--think={'true' if thinking['on'] else 'false'}"
        return [
            f"# Ollama (llama.cpp: `{server}`)",
            _line("safesteer export", self.run, "--format gguf --output", file),
            _line("printf 'FROM ./%s\\nPARAMETER temperature 0\\n'", file, "> Modelfile"),
            _line("ollama create", self.name, "-f Modelfile"),
            _line("ollama run", self.name, think),
        ]

    def own_base(self) -> list[str]:
        """The adapter on a GGUF file of the base, which may be quantized; none without adapter."""
        if self.full or self.on_adapter:
            return []
        base = str(locate(self.settings.model)[1]) if self.gguf else "BASE.gguf"
        file, kwargs = f"{self.name}-lora.gguf", self.template_kwargs
        options = ["--jinja"]
        if kwargs:
            options = ["--jinja --chat-template-kwargs", json.dumps(kwargs)]
        return [
            "# llama.cpp: the adapter on your own GGUF file of the base, quantized or not",
            _line("safesteer export", self.run, "--format lora-gguf --output", file),
            _line("llama-server -m", base, "--lora", file, *options),
        ]

    def lm_eval(self) -> list[str]:
        adapter = str(self.run / "adapter")
        if self.full:
            arguments = {"pretrained": str(self.run / "model")}
        elif self.merged:
            arguments = {"pretrained": f"{self.name}-merged"}
        else:
            arguments = {**self._base_arguments(), "peft": adapter, "tokenizer": adapter}
        return ["# lm-eval: capability of the aligned model", self._evaluate("hf", arguments)]

    def teacher(self) -> list[str]:
        title = "# lm-eval: capability of the safety teacher"
        if self.quantized:
            made = _line("safesteer export", self.run, "--format teacher --output", "teacher")
            return [title, made, self._evaluate("hf", {"pretrained": "teacher"})]
        folder = "teacher-steered"
        made = _line("safesteer export", self.run, "--format steered --output", folder)
        steered = {"tokenizer": folder, "steer_path": f"{folder}/steered.pt"}
        return [title, made, self._evaluate("steered", {**self._base_arguments(), **steered})]

    def _base_arguments(self) -> dict[str, str]:
        """lm-eval's arguments for the base."""
        model = self.settings.model
        if self.gguf:
            path = locate(model)[1]
            return {"pretrained": str(path.parent), "gguf_file": path.name}
        revision = {"revision": model.revision} if model.revision else {}
        return {"pretrained": model.id, **revision}

    def _evaluate(self, kind: str, arguments: dict[str, str]) -> str:
        """A line of lm-eval; arguments of the chat template need them as JSON."""
        if self.thinking is not None and self.thinking["on"]:
            arguments = {**arguments, "think_end_token": self.thinking["closing"]}
        given = ",".join(f"{key}={value}" for key, value in arguments.items())
        if self.template_kwargs:
            given = json.dumps({**arguments, "chat_template_args": self.template_kwargs})
        return _line(f"lm_eval --model {kind} --model_args", given, _LM_EVAL)


def _line(*parts: object) -> str:
    """Words joined; those at odd positions are arguments, which are quoted where needed."""
    words = [
        shlex.quote(str(part)) if index % 2 else " ".join(str(part).split())
        for index, part in enumerate(parts)
    ]
    return " ".join(filter(None, words))
