"""report.html: the findings of a run as one self-contained page.

Everything a model wrote is hostile input. The template escapes all of it, characters that reorder
text are spelled out, and a content security policy keeps the page from running or loading anything
but its own script.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from safesteer.config.load import dump_settings
from safesteer.report import direction_map, insides, results, template
from safesteer.report.findings import Findings
from safesteer.report.transcripts import transcripts
from safesteer.report.words import duration, size, thinking_of
from safesteer.runs.worse import worse_than_base

_STATUS = {"running": "is unfinished", "failed": "failed", "interrupted": "was interrupted"}


def render_page(findings: Findings, note: str = "") -> str:
    """The HTML of report.html; `note` says why something is missing."""
    script = template.package_text("filter.js")
    settings = findings.run.settings
    return template.render(
        "page.html.j2",
        script=Markup(script),
        policy=template.security_policy(script),
        model=settings.model.id,
        facts=_facts(findings),
        lead=results.lead(findings),
        banners=_banners(findings, note),
        columns=results.columns(findings),
        both_sides=results.both_sides(findings),
        repairs=results.repairs(findings),
        benchmarks=results.benchmarks(findings),
        judges=results.judges(findings),
        direction=direction_map.direction(findings),
        tokens=insides.tokens(findings),
        training=insides.training(findings),
        rollouts=insides.rollouts(findings),
        states=insides.states(findings),
        costs=_costs(findings),
        versions=findings.run.manifest["versions"],
        hardware=_hardware(findings.run.manifest["hardware"]),
        config=dump_settings(settings),
        transcripts=transcripts(findings),
    )


def _facts(findings: Findings) -> list[str]:
    settings = findings.run.settings
    method = "all weights" if findings.full else f"LoRA adapter of rank {settings.train.lora.r}"
    done, planned = len(findings.steps), settings.train.max_steps
    steps = f"{done} steps" if planned in (None, done) else f"{done} of {planned} steps"
    facts = [method, steps if done else "not trained", f"seed {settings.seed}"]
    if thinking := thinking_of(findings.run.manifest["model"]):
        facts.append(thinking)
    seconds = sum(cost.seconds for cost in findings.run.summary())
    facts.append(f"{duration(seconds)} in total")
    return facts


def _banners(findings: Findings, note: str) -> list[str]:
    stages = findings.run.manifest["stages"]
    found = []
    if worse := worse_than_base(findings.results):
        found.append(f"The aligned model is worse than its base: it {worse}.")
    found += [note] if note else []
    if findings.incomplete:
        found.append(f"The evaluation is incomplete: {findings.incomplete}.")
    found += [
        f"Stage {name} {_STATUS[entry['status']]}."
        for name, entry in stages.items()
        if entry["status"] in _STATUS and name != "report"
    ]
    found += [
        f"Stage {name} is out of date: an earlier stage was run again after it."
        for name in findings.stale
        if name != "report"
    ]
    return found


def _costs(findings: Findings) -> list[dict[str, Any]]:
    costs = findings.run.summary()
    longest = max((cost.seconds for cost in costs), default=0.0) or 1.0
    stages = findings.run.manifest["stages"]
    return [
        {
            "stage": cost.stage,
            "status": stages[cost.stage]["status"],
            "time": duration(cost.seconds),
            "share": f"{100 * cost.seconds / longest:.1f}",
            "memory": size(cost.peak_memory_bytes),
            "gpu": stages[cost.stage].get("gpu_memory_bytes", 0),
        }
        for cost in costs
    ]


def _hardware(hardware: dict[str, Any]) -> list[tuple[str, str]]:
    shown = {
        "processor": hardware.get("cpu"),
        "cores": hardware.get("cores"),
        "memory": size(hardware.get("memory_bytes") or 0),
        "GPUs": ", ".join(hardware.get("gpus") or []) or "none",
        "system": hardware.get("platform"),
    }
    return [(name, str(value)) for name, value in shown.items() if value]
