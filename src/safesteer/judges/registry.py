"""The table of judges by name.

To add a guard model, add an entry to `guard_formats.GUARDS`; to add another judge, a factory and an
entry in `JUDGES` below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safesteer.config.settings import EvaluateSettings
from safesteer.errors import InputError, nearest
from safesteer.judges.guard_formats import GUARDS
from safesteer.judges.verdict import Judge

if TYPE_CHECKING:
    from safesteer.judges.endpoint import WinRateJudge


@dataclass(frozen=True)
class JudgeSpec:
    """The arguments of a judge's factory.

    Attributes:
        name: of the judge in the table.
        model: to use in place of the table's.
        settings: of the evaluation.
        device: of a guard model.
        cache_dir: folder for replies; None keeps none.
    """

    name: str
    model: str | None
    settings: EvaluateSettings
    device: str
    cache_dir: Path | None


def judge_names() -> list[str]:
    """The names that `make_judge` knows, in the order of the table."""
    return list(JUDGES)


def make_judge(
    name: str, settings: EvaluateSettings, device: str = "auto", cache_dir: str | Path | None = None
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
    known, given, model = name.partition("=")
    if known not in JUDGES:
        raise InputError(
            f"no judge named '{known}'{nearest(known, JUDGES)}. Try: {', '.join(JUDGES)}"
        )
    if given and not model.strip():
        raise InputError(f"judge '{name}' names no model. Try: {known} or {known}=MODEL")
    spec = JudgeSpec(
        name=known,
        model=model.strip() or None,
        settings=settings,
        device=device,
        cache_dir=Path(cache_dir) if cache_dir is not None else None,
    )
    return JUDGES[known](spec)


def win_rate_judge(
    settings: EvaluateSettings, model: str | None = None, cache_dir: str | Path | None = None
) -> WinRateJudge:
    """The judge of AlpacaEval's win rate: a model behind the endpoint of the settings.

    Raises:
        InputError: the endpoint has no address or no model.
    """
    from safesteer.judges.endpoint import WinRateJudge

    folder = Path(cache_dir) if cache_dir is not None else None
    return WinRateJudge(settings.endpoint, model, folder)


def _offline(spec: JudgeSpec) -> Judge:
    from safesteer.judges.offline import OfflineJudge

    if spec.model is not None:
        raise InputError(
            f"judge '{spec.name}={spec.model}': {spec.name} uses no model. Try: {spec.name}"
        )
    return OfflineJudge()


def _guard(spec: JudgeSpec) -> Judge:
    from safesteer.judges.guard import GradeJudge, GuardJudge

    guard = GUARDS[spec.name]
    kind = GuardJudge if guard.read is not None else GradeJudge
    return kind(
        spec.name, guard, spec.model, spec.device, spec.settings.advanced.batch_size, spec.cache_dir
    )


def _endpoint(spec: JudgeSpec) -> Judge:
    from safesteer.judges.endpoint import EndpointJudge

    return EndpointJudge(spec.settings.endpoint, spec.model, spec.cache_dir)


JUDGES: dict[str, Callable[[JudgeSpec], Judge]] = {
    "offline-refusal": _offline,
    **dict.fromkeys(GUARDS, _guard),
    "endpoint": _endpoint,
}
