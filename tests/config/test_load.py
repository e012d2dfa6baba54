"""Settings from a recipe, sections and overrides."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from safesteer.cli.main import main
from safesteer.config import load as recipe
from safesteer.config.load import (
    _all_keys,
    _section_class,
    describe_settings,
    load_settings,
    recipe_names,
    recipe_text,
)
from safesteer.config.rules import RULES
from safesteer.config.settings import Settings
from safesteer.errors import InputError


def test_sections_win_key_by_key_however_deep() -> None:
    """What a section within a section leaves out is the recipe's."""
    before = load_settings("smollm2-135m").train
    changed = load_settings("smollm2-135m", train={"max_steps": 7, "lora": {"r": 3}}).train
    expected = before.model_copy(
        update={"max_steps": 7, "lora": before.lora.model_copy(update={"r": 3})}
    )
    assert changed == expected != before


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
        load_settings(path, train={"lora": {"r": 3}})


def test_the_defaults_are_the_recipe_default() -> None:
    assert load_settings("default") == Settings()


def test_the_recipe_default_shows_every_main_key() -> None:
    """With a comment of its own, since `safesteer recipes show default` is the reference."""
    text = recipe_text("default")
    shown = set(_leaves(yaml.safe_load(text)))
    wanted = {key for key in _all_keys() if ".advanced." not in key}
    assert wanted - shown == {"model.id"}  # the command line names the model
    assert shown <= wanted
    keys = [line for line in text.splitlines() if re.match(r" *[a-z_]+: ", line)]
    assert len(keys) == len(shown)
    assert [line for line in keys if "  # " not in line] == ["    target_modules: all-linear"]


def test_few_keys_are_outside_advanced() -> None:
    assert sum(".advanced." not in key for key in _all_keys()) <= 60


def test_every_key_says_what_it_does_in_sentences() -> None:
    for key in _all_keys():
        *sections, name = key.split(".")
        words = _section_class(sections).model_fields[name].description  # type: ignore[union-attr]
        assert words and words[0].isupper() and words.endswith("."), key


@pytest.mark.parametrize("name", recipe_names())
def test_described_settings_are_the_settings(name, tmp_path) -> None:
    settings = load_settings(name)
    (tmp_path / "all.yaml").write_text(describe_settings(settings))
    assert load_settings(tmp_path / "all.yaml") == settings


@pytest.mark.parametrize("name", recipe_names())
def test_a_shown_recipe_is_a_config_file(name, tmp_path, capsys) -> None:
    """What it extends stands in comments above it."""
    for more in ([], ["--all"]):
        assert main(["recipes", "show", name, *more]) == 0
        (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
        assert load_settings(tmp_path / "shown.yaml") == load_settings(name)


def test_a_file_extends_a_recipe(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: llama-3-8b\ntokens:\n  advanced: {end_of_turn: true}\n")
    expected, found = load_settings("llama-3-8b"), load_settings(path)
    assert expected.tokens.horizon == found.tokens.horizon == 5
    assert found.tokens.advanced.end_of_turn and not expected.tokens.advanced.end_of_turn
    expected.tokens.advanced.end_of_turn = True
    assert found == expected


def test_what_cannot_be_extended(tmp_path, monkeypatch) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: publishd\n")
    with pytest.raises(InputError, match=r"mine\.yaml: extends .*did you mean 'published'"):
        load_settings(path)
    path.write_text("extends: accelerate/1-gpu\n")
    with pytest.raises(InputError, match="is no recipe"):
        load_settings(path)
    texts = {"default": "extends: published", "published": "extends: default"}
    monkeypatch.setattr(recipe, "recipe_text", texts.get)
    with pytest.raises(InputError, match="published -> default -> published"):
        load_settings("default")


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (["teacher.strength=0", "teacher.context=none"], "teacher the same as the model"),
        (["train.method=full", "model.quantization=4bit"], "trains every weight"),
        (["train.method=full", "model.advanced.device_map=auto"], "needs a copy of the model"),
        (["model.device=cpu", "model.advanced.device_map=auto"], "exclude each other"),
        (["train.anchor_share=0.99"], "leaves no harmful prompt among the 16"),
        (["train.anchor_share=0.01"], "less than one prompt"),
        (["train.loss_tokens=all", "train.anchor_tokens=safety"], "do not go together"),
        (["train.lora.first_layer=steered", "teacher.strength=0"], "not steered at any layer"),
        (
            ["direction.source=harmful-harmless", "direction.advanced.train_prompts=7"],
            "train_prompts = 7 do not go together",
        ),
        (["train.rollouts=vllm", "model.advanced.device_map=auto"], "exclude each other"),
        (["train.rollouts=vllm", "model.quantization=8bit"], "exclude each other"),
    ],
)
def test_settings_that_do_not_go_together_are_named_alone(broken, says) -> None:
    """One line says what, and what to try; each setting alone is allowed."""
    with pytest.raises(InputError, match=rf"^settings: .*{says}.*\. Try: ") as told:
        load_settings("default", broken)
    assert "\n" not in str(told.value)
    for alone in broken if len(broken) > 1 else ():
        load_settings("default", [alone])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("train.max_steps=", "the value is missing. Try: train.max_steps=null"),
        ("train.max_steps", "expected section.key=value"),
        ("=5", "expected section.key=value"),
        ("train..max_steps=5", "expected section.key=value"),
        ("seed.x=1", "'seed' is not a section"),
        ("train.max_steps=true", "yes and no do not fit"),
        ("train.learning_rate=yes", "yes and no do not fit"),
        ("model.revision=no", "yes and no do not fit"),
        ("direction.advanced.layers=[true]", "yes and no do not fit"),
        ("train.max_steps=1.5", "integer"),
        ("train.lora=16", "expected a section"),
        ("train.learning_rate=nan", "train.learning_rate = 'nan'"),
        ("train.learning_rate=.nan", "finite"),
        ("train.learning_rate=.inf", "finite"),
        ("train.learning_rate=1e400", "finite"),
        ("direction.advanced.coefficients=[.nan]", "finite"),
        ("direction.advanced.coefficients=[-1]", "greater than 0"),
        ("direction.advanced.coefficients=[]", "at least 1 item"),
        ("direction.advanced.layers=[]", "at least 1 item"),
        ("direction.advanced.refusing_openings=['']", "match pattern"),
        ("train.lora.target_modules=[]", "train.lora.target_modules"),
        ("train.lora.target_modules=''", "train.lora.target_modules"),
        ("train.lora.alpha=99999999999999999999", "too large"),
        ("seed=9223372036854775808", "too large"),
        ("seed=4294967296", "less than 4294967296"),
        ("seed=-1", "greater than or equal to 0"),
        ("report_to=wandb", "expected a list. Try: report_to=[A,B], even for one"),
        ("prompts.column=1", "expected a text. Try: quotes"),
        ("teacher.temperature=1e-30", "greater than or equal to 0.001"),
    ],
)
def test_a_slip_in_an_override_is_one_line(wrong, says) -> None:
    with pytest.raises(InputError, match=re.escape(says)) as raised:
        load_settings("default", [wrong])
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 200


def test_an_override_of_a_section_keeps_its_other_keys() -> None:
    """They are those of the recipe, not the defaults."""
    before = load_settings("smollm2-135m", ["train.lora.r=3"])
    assert load_settings("smollm2-135m", ["train.lora={r: 3}"]) == before
    assert before.train.lora.alpha == load_settings("smollm2-135m").train.lora.alpha
    nested = load_settings("default", ["model.template_kwargs.a=1", "model.template_kwargs.b=2e3"])
    assert nested.model.template_kwargs == {"a": 1, "b": 2000.0}


def test_rules_name_settings_that_exist() -> None:
    for rule in RULES:
        assert set(rule.keys) <= set(_all_keys())
        assert ". Try: " in rule.message and rule.reason.endswith(".")


def _leaves(values: dict[str, Any], before: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield before + key
