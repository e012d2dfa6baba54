"""`safesteer recipes`. (pytest tests/cli)"""

from __future__ import annotations

import re

import yaml

from safesteer.config.load import load_settings
from safesteer.config.settings import Settings


def test_the_list_says_what_each_recipe_is_for(safesteer):
    out = safesteer("recipes").out
    listed = dict(re.findall(r"^(\S+) +(\S.*?)  +", out, re.MULTILINE))
    assert listed["smollm2-135m"] == "smollm2-135m"
    assert listed["published"] == listed["default"] == "any model"
    assert "For a model that no other recipe names." in out


def test_a_recipe_is_shown_with_its_comments_and_what_it_extends(safesteer):
    out = safesteer("recipes", "show", "qwen3-4b").out
    assert out.startswith("# qwen3-4b extends published, which says:\n#   # Any model with")
    assert "\nextends: published\n" in out
    assert yaml.safe_load(out)["model"]["id"].startswith("Qwen/")
    assert "# K" in safesteer("recipes", "show", "published").out
    every = safesteer("recipes", "show", "qwen3-4b", "--all").out
    assert Settings.model_validate(yaml.safe_load(every)) == load_settings("qwen3-4b")


def test_recipes_name_what_is_wrong(safesteer):
    assert "Try: `safesteer recipes list`" in safesteer("recipes", "show").error
    assert "did you mean 'show'" in safesteer("recipes", "shwo").error
