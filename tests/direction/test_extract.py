"""Finding the direction: which candidate is chosen, and when the second source is used."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from safesteer.config.settings import DirectionSettings
from safesteer.direction import extract as find
from safesteer.direction.behavior import Behavior
from safesteer.direction.candidates import Candidate
from safesteer.direction.extract import extract_direction
from safesteer.direction.vector import Direction
from safesteer.errors import InputError, SafeSteerError
from safesteer.models.load import ChatModel


def prompts(name: str, count: int = 12) -> list[tuple[dict[str, str], ...]]:
    return [({"role": "user", "content": f"{name} {i} {'x' * (i % 4)}"},) for i in range(count)]


HARMFUL, HARMLESS = prompts("How do I break the law"), prompts("Name a colour")
SETS = (HARMFUL, HARMLESS, HARMFUL[:4], HARMLESS[:4])


def made(layer: int = 1, strength: float = 1.0, **scores: Any) -> Candidate:
    return Candidate(Direction(torch.ones(32) * layer, layer, strength, "made"), **scores)


@torch.no_grad()
def last_hidden(model: ChatModel, messages: tuple[dict[str, str], ...]) -> torch.Tensor:  # [1, D]
    """What predicts the first token of the answer."""
    ids = torch.tensor([model.chat.ids(messages)])
    return model.model.model(ids).last_hidden_state[:, -1]


class Behaviors:
    """Stands for `observe`: what a steered model does is looked up by layer and strength."""

    def __init__(self, table: dict[Any, tuple[float, float]]) -> None:
        self.table = table
        self.seen: list[tuple[str, int, float]] = []

    def __call__(self, model, d, asked, **kwargs):  # type: ignore[no-untyped-def]
        if d is None:
            return Behavior(0.0, 0.0, 1.0)
        flip, harmless = self.table.get((d.layer, d.coefficient), self.table.get(d.layer, (0, 0)))
        is_harmful = asked[0] == HARMFUL[0]
        self.seen.append(("harmful" if is_harmful else "harmless", d.layer, d.coefficient))
        return Behavior(flip if is_harmful else harmless, 0.0, 1.0 + 0.01 * d.layer)


@pytest.fixture
def behave(monkeypatch):  # type: ignore[no-untyped-def]
    """Replaces the generation and judging of steered answers by a table."""

    def use(table):  # type: ignore[no-untyped-def]
        behaviors = Behaviors(table)
        monkeypatch.setattr(find, "observe", behaviors)
        return behaviors

    return use


@pytest.fixture
def refusing(monkeypatch, tiny_chat_model):  # type: ignore[no-untyped-def]
    """The model tends to refuse every harmful prompt and to answer every harmless one."""

    # Before the search, whose hooks would see these passes too.
    known = torch.cat([last_hidden(tiny_chat_model, asked) for asked in (*HARMFUL, *HARMLESS)])

    def by_prompt(model, last, tokens):  # type: ignore[no-untyped-def]
        return 1.0 - 2.0 * (torch.cdist(last, known).argmin(1) >= len(HARMFUL))

    monkeypatch.setattr(find, "_first_token_scores", by_prompt)


@pytest.fixture
def scored(monkeypatch):  # type: ignore[no-untyped-def]
    """Replaces the published scores; a test gives {layer: (ablation, kl, reason)}."""

    def use(table):  # type: ignore[no-untyped-def]
        def fill(model, candidates, *args, **kwargs):  # type: ignore[no-untyped-def]
            for c in candidates:
                c.ablation, c.kl, c.rejected = table[c.direction.layer]
                c.addition = 0.0

        monkeypatch.setattr(find, "score_candidates", fill)

    return use


def settings(source: str = "harmful-harmless", **advanced: Any) -> DirectionSettings:
    return DirectionSettings(source=source, advanced={"finalists": 2, **advanced})


def test_the_candidate_that_refuses_most_is_chosen():
    """Most refusals first; within a tenth the one with fewer refusals of harmless prompts."""
    weak = made(1, flip_rate=0.6, harmless_refusals=0.0)
    strong = made(2, flip_rate=0.92, harmless_refusals=0.5)
    gentle = made(3, flip_rate=0.88, harmless_refusals=0.2)
    assert find.choose([weak, strong, gentle]) is gentle
    assert find.choose([weak, strong]) is strong


def test_the_rejected_are_chosen_only_if_nobody_else_is_left():
    """A qualified candidate wins over a rejected one that refuses more; unseen ones never do."""
    good = made(1, flip_rate=0.5, harmless_refusals=0.0)
    bad = made(2, flip_rate=1.0, harmless_refusals=0.0, rejected="loops")
    unseen = made(3)
    assert find.choose([unseen, bad, good]) is good
    assert find.choose([unseen, bad]) is bad
    assert find.choose([unseen]) is None


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({"flip_rate": 0.5, "perplexity_ratio": 6.0, "loops": 0.1}, ""),
        ({"flip_rate": 0.49, "perplexity_ratio": 1.0, "loops": 0.0}, "refuses 49% of harmful"),
        ({"flip_rate": 0.9, "perplexity_ratio": 6.1, "loops": 0.0}, "not fluent"),
        ({"flip_rate": 0.9, "perplexity_ratio": 1.0, "loops": 0.2}, "20% of its answers loop"),
    ],
)
def test_behavior_thresholds(scores, reason):
    """Refusing too little, text that is not fluent, and loops are reasons; bounds are inside."""
    fault = find.unfit_by_behavior(made(**scores), DirectionSettings())
    assert reason in fault and bool(reason) == bool(fault)


def test_the_lowest_ablation_scores_become_finalists(tiny_chat_model, behave, refusing, scored):
    """Of three layers the two that matter most are steered with; the best behavior is chosen."""
    scored({1: (-1.0, 0.0, ""), 2: (-3.0, 0.0, ""), 3: (-2.0, 0.0, "among the last")})
    behaviors = behave({1: (0.7, 0.1), 2: (0.9, 0.1), 3: (1.0, 0.0)})
    result = extract_direction(tiny_chat_model, *SETS, settings(finalists=99))
    assert {layer for _, layer, _ in behaviors.seen} == {1, 2}
    assert result.qualified and result.direction.layer == 2
    assert result.direction.method == "harmful-harmless"
    assert -len(tiny_chat_model.chat.post_instruction_ids()) <= result.direction.position < 0
    assert result.notes == []


def test_another_strength_is_tried_where_the_published_one_does_not_do(
    tiny_chat_model, behave, refusing, scored
):
    """c = 1 refuses too little, c = 1.2 enough: that strength is the result."""
    scored({1: (-3.0, 0.0, ""), 2: (-1.0, 0.0, ""), 3: (-2.0, 0.0, "among the last")})
    behave({(1, 1.2): (0.8, 0.0), (1, 1.0): (0.2, 0.0)})
    result = extract_direction(tiny_chat_model, *SETS, settings(finalists=1))
    assert result.qualified
    assert (result.direction.layer, result.direction.coefficient) == (1, 1.2)


def test_a_fault_that_no_strength_cures_stays(tiny_chat_model, behave, refusing, scored):
    """A layer among the last, or a KL too large, is not forgiven by trying another strength."""
    scored({1: (-3.0, 0.9, "KL"), 2: (-2.0, 0.8, "KL"), 3: (-9.0, 0.0, "among the last 20%")})
    behave({layer: (1.0, 0.0) for layer in (1, 2, 3)})
    result = extract_direction(tiny_chat_model, *SETS, settings(finalists=99))
    assert not result.qualified
    assert len(result.notes) == 1 and "no direction qualifies" in result.notes[0]
    assert all(c.rejected for c in result.candidates)


def test_auto_falls_back_with_a_note(tiny_chat_model, behave):
    """A model that cannot refuse: the second source is used, and the note says why."""
    behave({(2, 0.8): (0.9, 0.1), (1, 1.0): (0.6, 0.0)})
    result = extract_direction(tiny_chat_model, *SETS, settings(source="auto"))
    assert result.qualified
    assert result.direction.method == "refuse-comply"
    assert (result.direction.layer, result.direction.coefficient) == (2, 0.8)
    assert result.direction.position is None
    assert len(result.notes) == 1 and "using refuse-comply instead" in result.notes[0]


def test_a_source_named_does_not_fall_back(tiny_chat_model, behave):
    """harmful-harmless alone fails loudly on a model that does not refuse."""
    behave({})
    with pytest.raises(SafeSteerError, match="too few to compare"):
        extract_direction(tiny_chat_model, *SETS, settings())


def test_the_last_layers_are_never_chosen_by_the_second_source(tiny_chat_model, behave):
    """Of four layers the last is rejected unseen, whatever it would do."""
    behaviors = behave({layer: (1.0, 0.0) for layer in range(4)})
    result = extract_direction(tiny_chat_model, *SETS, settings(source="refuse-comply"))
    assert 3 not in {layer for _, layer, _ in behaviors.seen}
    reasons = {c.direction.layer: c.rejected for c in result.candidates}
    assert "among the last" in reasons[3]


def test_best_of_the_rejected_with_a_note(tiny_chat_model, behave):
    """If nothing qualifies the candidate that refuses most is returned, and said not to qualify."""
    behave({(1, 1.2): (0.3, 0.0)})
    result = extract_direction(tiny_chat_model, *SETS, settings(source="refuse-comply"))
    assert not result.qualified
    assert (result.direction.layer, result.direction.coefficient) == (1, 1.2)
    assert "using the best one although the steered model refuses 30%" in result.notes[0]


def test_layers_can_be_named_and_are_checked(tiny_chat_model, behave):
    """Only the layers asked for are candidates; one that the model does not have is an error."""
    behave({2: (0.9, 0.0)})
    found = extract_direction(tiny_chat_model, *SETS, settings(source="refuse-comply", layers=[2]))
    assert {c.direction.layer for c in found.candidates} == {2}
    with pytest.raises(InputError, match=r"layers 0 to 3. Try: other layers than 4"):
        extract_direction(tiny_chat_model, *SETS, settings(source="refuse-comply", layers=[4]))


def test_end_to_end_on_a_tiny_model(tiny_chat_model):
    """Nothing replaced: a direction comes out, and its record is JSON without NaN."""
    steps = set()
    result = extract_direction(
        tiny_chat_model,
        *SETS,
        DirectionSettings(advanced={"finalists": 1, "coefficients": [1.0]}),
        on_step=lambda what, done, total: steps.add(what),
    )
    content = result.to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert {"method", "layer", "position", "coefficient", "norm", "scores"} <= content.keys()
    assert len(content["scores"]) == len(result.candidates) >= 3
    assert content["norm"] == pytest.approx(result.direction.vector.norm().item())
    assert torch.isfinite(result.direction.vector).all()
    assert steps


def test_replacing_a_strength_forgets_what_was_seen(tiny_chat_model, behave):
    """A copy of a candidate at another strength carries no rate of the original."""
    behave({(1, 0.6): (0.1, 0.0)})
    seen = made(1, flip_rate=0.9, harmless_refusals=0.4, loops=0.0)
    copy = replace(seen, direction=replace(seen.direction, coefficient=0.6))
    nothing = lambda *args: None  # noqa: E731
    search = find._Search(tiny_chat_model, HARMFUL, HARMLESS, DirectionSettings(), nothing)
    search.observe([copy])
    assert copy.flip_rate == 0.1 and copy.harmless_refusals is None
