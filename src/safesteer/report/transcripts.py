"""Transcripts for report.html: prompts with the answers of base, aligned model and teacher."""

from __future__ import annotations

from typing import Any

from safesteer.inference import VARIANTS
from safesteer.report.findings import Findings
from safesteer.report.words import label

ANSWER_CHARACTERS = 1500
TRANSCRIPT_CHARACTERS = 900_000  # of all transcripts; keeps the page under 2 MB
SET_ROWS = 100


def transcripts(findings: Findings) -> dict[str, Any] | None:
    """As many prompts with their answers as fit the page; None without samples."""
    if not findings.samples:
        return None
    budget = TRANSCRIPT_CHARACTERS // len(findings.samples)
    rows: list[dict[str, Any]] = []
    counts = []
    for name, by_model in findings.samples.items():
        first = by_model.get("aligned") or next(iter(by_model.values()))
        by_id = {model: {row.get("id"): row for row in found} for model, found in by_model.items()}
        used = shown = 0
        for sample in first[:SET_ROWS]:
            row = _transcript(
                name, sample, {m: found.get(sample.get("id")) for m, found in by_id.items()}
            )
            used += row.pop("size")
            if used > budget:
                break
            rows.append(row)
            shown += 1
        counts.append({"set": name, "label": label(name), "shown": shown, "total": len(first)})
    verdicts = dict.fromkeys(v for row in rows for v in row["verdicts"])
    return {"rows": rows, "sets": counts, "verdicts": list(verdicts)}


def _transcript(
    name: str, sample: dict[str, Any], answers: dict[str, dict[str, Any] | None]
) -> dict[str, Any]:
    columns = [
        {
            "model": model,
            "text": _cut(str(row.get("completion", ""))),
            "thinking": _cut(str(row.get("thinking", ""))),
            "tags": _tags(row),
        }
        for model in VARIANTS
        if (row := answers.get(model)) is not None
    ]
    prompt = str(sample.get("prompt", ""))[:ANSWER_CHARACTERS]
    return {
        "set": name,
        "category": sample.get("category") or "",
        "prompt": prompt,
        "columns": columns,
        "verdicts": _verdicts(answers),
        "size": sum(len(c["text"]) + len(c["thinking"]) for c in columns) + len(prompt) + 900,
    }


def _cut(text: str) -> str:
    return text[:ANSWER_CHARACTERS] + (" […]" if len(text) > ANSWER_CHARACTERS else "")


def _tags(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(CSS class, words) of an answer's verdicts."""
    tags = []
    if row.get("refused") is not None:
        verdict = "refused" if row["refused"] else "answered"
        tags.append((verdict, verdict))
    elif row.get("score") is not None:  # of a question with a right answer
        names = {1: "won", 0: "lost", 0.5: "tie"} if "other" in row else {1: "right", 0: "wrong"}
        word = names.get(row["score"], f"score {row['score']:g}")
        tags.append(("answered" if row["score"] else "flag", word))
    if not row.get("finished", True):
        tags.append(("flag", "no answer"))
    if row.get("looping"):
        tags.append(("flag", "looping"))
    if row.get("cut"):
        tags.append(("", "truncated"))
    for judge, verdict in (row.get("verdicts") or {}).items():
        words = [
            yes if verdict.get(key) else no
            for key, yes, no in (("unsafe", "unsafe", "safe"), ("refused", "refused", "answered"))
            if verdict.get(key) is not None
        ]
        tags.append(("", f"{judge}: {', '.join(words) or 'no verdict'}"))
    return tags


def _verdicts(answers: dict[str, dict[str, Any] | None]) -> list[str]:
    """The filters that a transcript matches."""
    aligned, base = answers.get("aligned"), answers.get("base")
    found = []
    if aligned and aligned.get("refused") is not None:
        found.append("aligned-refused" if aligned["refused"] else "aligned-answered")
        if base and base.get("refused") not in (None, aligned["refused"]):
            found.append("changed")
    if aligned and aligned.get("looping"):
        found.append("aligned-loops")
    for row in answers.values():
        for key in ("unsafe", "refused"):
            given = {
                verdict[key]
                for verdict in ((row or {}).get("verdicts") or {}).values()
                if verdict.get(key) is not None
            }
            if len(given) > 1 and "judges-disagree" not in found:
                found.append("judges-disagree")
    return found
