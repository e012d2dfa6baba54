"""The table of judges by name.

To add a guard model, add an entry to `guard_formats.GUARDS`; to add another judge, its name to
`JUDGES` and a line to `make_judge`.
"""

from __future__ import annotations

from pathlib import Path

from safesteer.config.settings import EvaluateSettings
from safesteer.errors import InputError, nearest
from safesteer.judges.guard_formats import GUARDS
from safesteer.judges.verdict import Judge

JUDGES = ("offline-refusal", *GUARDS, "endpoint")


def parse_judge(name: str) -> tuple[str, str]:
    """(NAME, MODEL or "") of ``NAME`` or ``NAME=MODEL``; InputError if there is no such judge."""
    known, given, model = name.partition("=")
    model = model.strip()
    if known not in JUDGES:
        raise InputError(
            f"no judge named '{known}'{nearest(known, JUDGES)}. Try: {', '.join(JUDGES)}"
        )
    if given and not model:
        raise InputError(f"judge '{name}' names no model. Try: {known} or {known}=MODEL")
    return known, model


def make_judge(
    name: str, settings: EvaluateSettings, device: str = "auto", cache_dir: Path | None = None
) -> Judge:
    """Make a judge; weights are loaded and requests sent only when it judges.

    Args:
        name: ``NAME``, or ``NAME=MODEL`` for another model than the table's.
        settings: of the evaluation.
        device: of a guard model.
        cache_dir: folder for replies, so that an interrupted evaluation resumes.

    Raises:
        InputError: an unknown name, a model for a judge without one, a folder with another
            architecture, an endpoint without address or model.
    """
    known, model = parse_judge(name)
    if known in GUARDS:
        from safesteer.judges.guard import GradeJudge, GuardJudge

        guard = GUARDS[known]
        kind = GuardJudge if guard.read is not None else GradeJudge
        return kind(known, guard, model, device, settings.advanced.batch_size, cache_dir)
    if known == "endpoint":
        from safesteer.judges.endpoint import EndpointJudge

        return EndpointJudge(settings.endpoint, model, cache_dir)
    from safesteer.judges.offline import OfflineJudge

    if model:
        raise InputError(f"judge '{name}': {known} uses no model. Try: {known}")
    return OfflineJudge()
