"""The judges by name.

To add one: a guard model is an entry of `formats.GUARDS`; anything else is a maker and an entry of
`JUDGES` below.
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
class Order:
    """What a judge is made from: its name in the table, and all that a maker may need."""

    name: str
    model: str | None
    settings: EvaluateSettings
    device: str
    cache_dir: Path | None


def judge_names() -> list[str]:
    """The names that `make_judge` knows, in the order of the table."""
    return list(JUDGES)


def make_judge(
    name: str,
    settings: EvaluateSettings,
    device: str = "auto",
    cache_dir: str | Path | None = None,
) -> Judge:
    """The judge of a name: ``NAME``, or ``NAME=MODEL`` for another model than the table's.

    Loads and sends nothing: weights are loaded, and the endpoint is asked, when answers come.
    `cache_dir` is where a guard's and the endpoint's replies are kept, so that an evaluation can
    go on.

    Raises InputError: unknown name (names the nearest), a model where none belongs, a folder of
    another architecture, an endpoint without address or model.
    """
    known, given, model = name.partition("=")
    if known not in JUDGES:
        raise InputError(
            f"no judge named '{known}'{nearest(known, JUDGES)}; known: {', '.join(JUDGES)}"
        )
    if given and not model.strip():
        raise InputError(f"judge '{name}': expected {known} or {known}=MODEL")
    order = Order(
        name=known,
        model=model.strip() or None,
        settings=settings,
        device=device,
        cache_dir=Path(cache_dir) if cache_dir is not None else None,
    )
    return JUDGES[known](order)


def win_rate_judge(
    settings: EvaluateSettings,
    model: str | None = None,
    cache_dir: str | Path | None = None,
) -> WinRateJudge:
    """What compares two answers (AlpacaEval): a model behind the endpoint of the settings.

    Raises InputError: no address or no model.
    """
    from safesteer.judges.endpoint import WinRateJudge

    folder = Path(cache_dir) if cache_dir is not None else None
    return WinRateJudge(settings.endpoint, model, folder)


def _offline(order: Order) -> Judge:
    from safesteer.judges.offline import OfflineJudge

    if order.model is not None:
        raise InputError(f"judge '{order.name}={order.model}': {order.name} has no model to choose")
    return OfflineJudge()


def _guard(order: Order) -> Judge:
    from safesteer.judges.guard import GradeJudge, GuardJudge

    guard = GUARDS[order.name]
    kind = GuardJudge if guard.read is not None else GradeJudge
    return kind(
        order.name,
        guard,
        order.model,
        order.device,
        order.settings.advanced.batch_size,
        order.cache_dir,
    )


def _endpoint(order: Order) -> Judge:
    from safesteer.judges.endpoint import EndpointJudge

    return EndpointJudge(order.settings.endpoint, order.model, order.cache_dir)


JUDGES: dict[str, Callable[[Order], Judge]] = {
    "offline-refusal": _offline,
    **dict.fromkeys(GUARDS, _guard),
    "endpoint": _endpoint,
}
