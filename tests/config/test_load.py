"""Settings from a recipe, sections and overrides."""

from __future__ import annotations

import pytest

from safesteer.config.load import load_settings
from safesteer.errors import InputError


def test_sections_win_key_by_key_however_deep() -> None:
    """What a section within a section leaves out is the recipe's."""
    recipe = load_settings("smollm2-135m").train
    changed = load_settings("smollm2-135m", train={"updates": 7, "lora": {"rank": 3}}).train
    expected = recipe.model_copy(
        update={"updates": 7, "lora": recipe.lora.model_copy(update={"rank": 3})}
    )
    assert changed == expected != recipe


def test_dictionaries_that_are_values_are_replaced(tmp_path) -> None:
    """What a template is told is one value: half of a file's and half of a section's is neither."""
    path = tmp_path / "mine.yaml"
    path.write_text("model:\n  template_kwargs: {enable_thinking: false}\n")
    section = {"template_kwargs": {"reasoning": "low"}}
    assert load_settings(path, model=section).model.template_kwargs == {"reasoning": "low"}
    settings = load_settings(path, ["model.template_kwargs={}"], model=section)
    assert settings.model.template_kwargs == {}
    assert section == {"template_kwargs": {"reasoning": "low"}}  # the caller's own


def test_a_file_that_is_wrong_within_a_section_is_said(tmp_path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("train:\n  lora: 3\n")
    with pytest.raises(InputError, match=r"wrong\.yaml: train\.lora"):
        load_settings(path, train={"lora": {"rank": 3}})


def test_settings_that_do_not_go_together_are_named_alone() -> None:
    with pytest.raises(InputError) as told:
        load_settings("smollm2-135m", ["train.weight_decay=0.1"])
    assert (
        str(told.value)
        == "settings: train.lora.whitening goes without train.weight_decay: set it to 0"
    )
    load_settings("smollm2-135m", ["train.weight_decay=0.1", "train.lora.whitening=null"])
    load_settings("smollm2-135m", ["train.weight_decay=0.1", "train.method=full"])
