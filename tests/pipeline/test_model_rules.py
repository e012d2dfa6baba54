"""Settings against a model's shape; `test_preflight` has the cases as a user meets them."""

from __future__ import annotations

import torch

from safesteer.config.load import load_settings
from safesteer.pipeline.model_rules import check_model_rules, read_model


def test_right_settings_pass_and_draw_no_number(tiny_model_folder):
    settings = load_settings(model={"id": str(tiny_model_folder)})
    found = read_model(settings)
    assert found is not None
    torch.manual_seed(3)
    check_model_rules(settings, *found, trains=True)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(2), drawn)


def test_all_weights_need_no_place_for_adapters(tiny_model_folder):
    lora = {"r": 999, "target_modules": ["query"]}
    settings = load_settings(
        model={"id": str(tiny_model_folder)}, train={"method": "full", "lora": lora}
    )
    found = read_model(settings)
    assert found is not None
    check_model_rules(settings, *found, trains=True)


def test_a_model_that_cannot_be_read_is_the_loaders_to_explain(tmp_path):
    assert read_model(load_settings(model={"id": str(tmp_path)})) is None
