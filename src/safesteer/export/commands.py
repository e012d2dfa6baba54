"""Command lines that serve or evaluate what a run made, in vLLM, Ollama and lm-eval.

Only words: nothing is loaded and nothing is run.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safesteer.config.settings import Settings
from safesteer.errors import InputError
from safesteer.models.files import BUILTIN, locate, short_name
from safesteer.models.quantization import loaded_bits

_LM_EVAL = "--tasks ifeval,gsm8k --apply_chat_template --batch_size auto"
# What vLLM accepts as --max-lora-rank.
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def commands(run: Path, settings: Settings, base: Mapping[str, Any] | None = None) -> str:
    """Lines for a shell, each part under a comment that says what it is.

    `base` is what the run's manifest says of the model: where that thinks, the tools are given the
    same arguments of the template; where it is an adapter, they are given merged weights.

    Raises InputError for a run that is not trained.
    """
    full, adapter = (run / "model").is_dir(), (run / "adapter").is_dir()
    if not (full or adapter):
        raise InputError(f"{run} is not trained; run `safesteer train {run}` first")
    base = base or {}
    thinking = base.get("thinking")
    # What vLLM and lm-eval cannot put an adapter on, they get as merged weights.
    merged = bool(base.get("adapter_of")) or _is_rounded(settings)
    name = f"{short_name(settings.model.id)}-safesteer".lower()
    if thinking is not None:
        model = settings.model.model_copy(update={"template_kwargs": thinking["template_kwargs"]})
        settings = settings.model_copy(update={"model": model})
    parts = [
        _vllm(run, settings, name, full, plain=not (_is_gguf(settings) or merged)),
        _ollama(run, settings, name, thinking),
        _lm_eval(run, settings, full, f"{name}-merged" if merged else "", thinking),
    ]
    if thinking is not None and thinking["appended"]:
        parts.insert(
            0,
            [
                "# The run's answers follow an empty thinking block, which the chat template cannot"
                " close by itself.",
                f"# Append {thinking['appended']!r} to its prompts; without it the model thinks"
                " first, which the run did not measure.",
            ],
        )
    if settings.teacher.steers and not base.get("adapter_of"):
        parts.append(_teacher(run, settings, thinking))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _vllm(run: Path, settings: Settings, name: str, full: bool, *, plain: bool) -> list[str]:
    merged = f"{name}-merged"
    made = [_line("safesteer export", run, "--format merged --output", merged)]
    lines = ["# vLLM: an OpenAI-compatible server"]
    kwargs = settings.model.template_kwargs
    template = ["--default-chat-template-kwargs", json.dumps(kwargs)] if kwargs else []
    if full:
        return [*lines, _line("vllm serve", run / "model", "--served-model-name", name, *template)]
    lines += [*made, _line("vllm serve", merged, "--served-model-name", name, *template)]
    if not plain:
        return lines
    rank = json.loads((run / "adapter" / "adapter_config.json").read_text("utf-8"))["r"]
    largest = next((r for r in _VLLM_RANKS if r >= rank), rank)
    revision = f"--revision {settings.model.revision}" if settings.model.revision else ""
    adapter = run / "adapter"
    return [
        *lines,
        "# vLLM: base and aligned model from one set of weights",
        _line(
            "vllm serve",
            settings.model.id,
            f"{revision} --enable-lora --max-lora-rank {largest} --lora-modules",
            f"{name}={adapter}",
            *template,
        ),
    ]


def _ollama(
    run: Path, settings: Settings, name: str, thinking: Mapping[str, Any] | None
) -> list[str]:
    file = f"{name}.gguf"
    kwargs = settings.model.template_kwargs
    server = "llama-server -m FILE --jinja"
    server += f" --chat-template-kwargs '{json.dumps(kwargs)}'" if kwargs else ""
    think = "" if thinking is None else f"--think={'true' if thinking['on'] else 'false'}"
    return [
        f"# Ollama (llama.cpp: `{server}`)",
        _line("safesteer export", run, "--format gguf --output", file),
        _line("printf 'FROM ./%s\\nPARAMETER temperature 0\\n'", file, "> Modelfile"),
        _line("ollama create", name, "-f Modelfile"),
        _line("ollama run", name, think),
    ]


def _lm_eval(
    run: Path, settings: Settings, full: bool, merged: str, thinking: Mapping[str, Any] | None
) -> list[str]:
    if full or merged:
        arguments = {"pretrained": str(run / "model") if full else merged}
    else:
        adapter = str(run / "adapter")
        arguments = {**_base_arguments(settings), "peft": adapter, "tokenizer": adapter}
    return [
        "# lm-eval: capability of the aligned model",
        _line(
            "lm_eval --model hf --model_args",
            _model_arguments(arguments, settings, thinking),
            _LM_EVAL,
        ),
    ]


def _teacher(run: Path, settings: Settings, thinking: Mapping[str, Any] | None) -> list[str]:
    if _is_rounded(settings):
        arguments = _model_arguments({"pretrained": "teacher"}, settings, thinking)
        return [
            "# lm-eval: the same of the safety teacher",
            _line("safesteer export", run, "--format teacher --output", "teacher"),
            _line("lm_eval --model hf --model_args", arguments, _LM_EVAL),
        ]
    folder = "teacher-steered"
    own = {"tokenizer": folder, "steer_path": f"{folder}/steered.pt"}
    arguments = _model_arguments({**_base_arguments(settings), **own}, settings, thinking)
    return [
        "# lm-eval: the same of the safety teacher",
        _line("safesteer export", run, "--format steered --output", folder),
        _line("lm_eval --model steered --model_args", arguments, _LM_EVAL),
    ]


def _base_arguments(settings: Settings) -> dict[str, str]:
    """How lm-eval finds the base."""
    if _is_gguf(settings):
        path = locate(settings.model)[1]
        return {"pretrained": str(path.parent), "gguf_file": path.name}
    revision = {"revision": settings.model.revision} if settings.model.revision else {}
    return {"pretrained": settings.model.id, **revision}


def _model_arguments(
    arguments: dict[str, str], settings: Settings, thinking: Mapping[str, Any] | None
) -> str:
    """lm-eval's --model_args; as JSON where the template has arguments of its own."""
    if thinking is not None and thinking["on"]:
        arguments = {**arguments, "think_end_token": thinking["closing"]}
    if settings.model.template_kwargs:
        return json.dumps({**arguments, "chat_template_args": settings.model.template_kwargs})
    return ",".join(f"{key}={value}" for key, value in arguments.items())


def _is_gguf(settings: Settings) -> bool:
    """Whether the base is a GGUF file, for which vLLM takes no adapter."""
    return settings.model.id == BUILTIN or settings.model.id.endswith(".gguf")


def _is_rounded(settings: Settings) -> bool:
    """Whether the run's base is held in 8 or 4 bits, which is merged into ordinary weights.

    How a hub model is stored is not looked up: nothing is asked for here.
    """
    return loaded_bits(settings.model, "folder", Path(settings.model.id)) != "none"


def _line(*parts: object) -> str:
    """Words joined; those that stand at an odd place are arguments, quoted where they need it."""
    words = [shlex.quote(str(p)) if index % 2 else str(p) for index, p in enumerate(parts)]
    return " ".join(" ".join(words).split())
