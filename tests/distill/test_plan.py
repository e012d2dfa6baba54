"""Which prompts an update answers."""

from collections import Counter

import pytest
from pydantic import ValidationError
from tiny import plain_training

from safesteer.config.settings import TrainSettings
from safesteer.distill.plan import TrainingPrompts, plan_rows, plan_training
from safesteer.errors import InputError


def prompts(name: str, count: int) -> list[tuple[dict[str, str], ...]]:
    return [({"role": "user", "content": f"{name} {i}"},) for i in range(count)]


def text(row: dict) -> str:
    return row["prompt"][-1]["content"]


def updates_of(rows: list[dict], settings: TrainSettings) -> list[list[dict]]:
    size = settings.prompts_per_step * settings.num_generations
    assert len(rows) % size == 0
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def test_one_epoch_holds_every_prompt_once_with_all_its_samples():
    """100 prompts by 4 are the paper's 25 updates; each prompt fills 8 rows of one update."""
    settings = plain_training()
    rows = plan_rows(settings, prompts("bad", 130), [], seed=0)
    updates = updates_of(rows, settings)
    assert len(updates) == 25
    assert Counter(map(text, rows)) == {f"bad {i}": 8 for i in range(100)}
    assert all(len(set(map(text, update))) == 4 for update in updates)
    assert not any(row["anchor"] for row in rows)


@pytest.mark.parametrize("seed", range(5))
def test_no_prompt_comes_again_before_all_have_come_and_none_twice_in_an_update(seed):
    """Also where an update spans the end of a round: 7 prompts by 4."""
    settings = plain_training(prompts_per_step=4, num_generations=2, max_steps=14)
    rows = plan_rows(settings, prompts("bad", 7), [], seed)
    dealt = [text(row) for row in rows[::2]]
    for start in range(0, len(dealt), 7):
        assert len(set(dealt[start : start + 7])) == 7
    assert all(len(set(map(text, u))) == 4 for u in updates_of(rows, settings))


def test_fewer_prompts_than_an_update_holds_are_repeated():
    """Three prompts still fill an update of four."""
    settings = plain_training(prompts_per_step=4, num_generations=1, max_steps=3)
    rows = plan_rows(settings, prompts("bad", 3), [], seed=0)
    assert Counter(map(text, rows)) == {f"bad {i}": 4 for i in range(3)}


@pytest.mark.parametrize(("share", "anchors"), [(0.25, 1), (0.5, 2), (0.66, 3), (0.75, 3)])
def test_share_of_anchors_in_every_update(share, anchors):
    """Each update holds the rounded share of harmless prompts, marked as anchors, and no others."""
    settings = plain_training(anchor_share=share, prompts_per_step=4, num_generations=2)
    rows = plan_rows(settings, prompts("bad", 10), prompts("good", 9), seed=1)
    for update in updates_of(rows, settings):
        assert sum(row["anchor"] for row in update) == anchors * 2
        assert all(text(row).startswith("good") == row["anchor"] for row in update)


def test_seed_decides_the_order():
    """Same seed, same plan; another seed, another one."""
    plans = [
        plan_rows(plain_training(anchor_share=0.5), prompts("bad", 50), prompts("good", 50), seed)
        for seed in (0, 0, 1)
    ]
    assert plans[0] == plans[1] != plans[2]


@pytest.mark.parametrize(
    ("settings", "harmful", "anchors", "message"),
    [
        ({}, 0, 5, "no harmful training prompts"),
        ({"anchor_share": 0.5}, 5, 0, "no harmless prompts for anchors"),
    ],
)
def test_plans_that_cannot_be_made(settings, harmful, anchors, message):
    """A plan without harmful prompts, or without the anchors asked for, is an input error."""
    with pytest.raises(InputError, match=message):
        plan_rows(
            plain_training(**settings), prompts("bad", harmful), prompts("good", anchors), seed=0
        )


@pytest.mark.parametrize(
    ("share", "message"), [(0.9, "leaves no harmful prompt"), (0.1, "less than one prompt")]
)
def test_shares_that_no_step_can_have(share, message):
    """Found before anything is loaded."""
    with pytest.raises(ValidationError, match=message):
        plain_training(anchor_share=share)


@pytest.mark.parametrize(("share", "of_each"), [(0.5, 2), (0.25, 1), (1.0, 4)])
def test_a_share_of_either_kind_is_prefilled(share, of_each):
    """With some first words of a prefill, all samples of a prompt alike; the rest is as without."""
    changes = {"prompts_per_step": 8, "num_generations": 2, "anchor_share": 0.5, "max_steps": 30}
    prefilled = {"prefill_share": share, "advanced": {"prefills": ["Of course!\nHere you", "Yes"]}}
    sets = prompts("bad", 10), prompts("good", 9)
    rows = plan_rows(plain_training(**changes, **prefilled), *sets, seed=1)
    words = [row.pop("prefill") for row in rows]
    plain = plan_rows(plain_training(**changes), *sets, seed=1)
    assert {row.pop("prefill") for row in plain} == {""}
    assert rows == plain
    assert words[::2] == words[1::2]
    for start in range(0, len(rows), 8):  # the harmful half of an update, or the anchors
        assert sum(map(bool, words[start : start + 8])) == 2 * of_each
    assert set(words) == {"Of course!", "Of course!\nHere", "Of course!\nHere you", "Yes"} | (
        {""} if share < 1 else set()
    )


@pytest.mark.parametrize(("share", "bad", "good"), [(0.1, 12, 36), (0.25, 30, 90), (0.3, 36, 108)])
def test_a_share_that_is_no_whole_number_holds_over_all_updates(share, bad, good):
    """A tenth of four harmful prompts is one in every third update at most; none is lost."""
    settings = plain_training(
        prefill_share=share,
        prompts_per_step=16,
        num_generations=1,
        anchor_share=0.75,
        max_steps=30,
    )
    rows = plan_rows(settings, prompts("bad", 9), prompts("good", 9), seed=0)
    prefilled = [row["anchor"] for row in rows if row["prefill"]]
    assert (prefilled.count(False), prefilled.count(True)) == (bad, good)
    by_update = [
        sum(bool(row["prefill"]) and not row["anchor"] for row in rows[start : start + 16])
        for start in range(0, len(rows), 16)
    ]
    assert max(by_update) - min(by_update) <= 1


@pytest.mark.parametrize("prefills", [[], [""], ["Sure", " \n"]])
def test_a_prefill_holds_a_word(prefills):
    """A blank one prefills nothing."""
    with pytest.raises(ValidationError):
        TrainSettings(advanced={"prefills": prefills})


def test_wrongly_refused_anchors_carry_the_opposite_strength():
    """The same prompts in the same places as without them; no strengths where there are none."""
    settings = plain_training(anchor_share=0.5, prompts_per_step=4, num_generations=1, max_steps=9)
    bad, good = prompts("bad", 6), prompts("good", 8)
    plain = plan_training(settings, TrainingPrompts(bad, good), 0, 0.5).rows
    rows = plan_training(settings, TrainingPrompts(bad, good, good[2:5]), 0, 0.5).rows
    wrong = {"good 2", "good 3", "good 4"}
    for row, before in zip(rows, plain, strict=True):
        strength = row.pop("strength")
        assert strength == (-0.5 if text(row) in wrong else float(text(row).startswith("bad")))
        assert row == before and "strength" not in before


def test_repairs_need_as_many_harmful_prompts_and_a_steered_teacher():
    """Those count that are trained on."""
    settings = plain_training(anchor_share=0.5, num_prompts=2)
    sets = TrainingPrompts(prompts("bad", 6), prompts("good", 8), prompts("good", 3))
    with pytest.raises(InputError, match=r"3 wrongly refused prompts .* 2 harmful"):
        plan_training(settings, sets, 0, 0.5)
    with pytest.raises(InputError, match="this teacher has none"):
        plan_training(plain_training(anchor_share=0.5), sets, 0)


def test_anchors_that_are_not_repaired():
    good = prompts("good", 4)
    assert TrainingPrompts([], good, good[1:3]).kept == [good[0], good[3]]
