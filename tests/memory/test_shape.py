"""Shapes of models, from the model and from its configuration alone."""

from __future__ import annotations

import json

import pytest

from safesteer.config.settings import ModelSettings
from safesteer.errors import InputError
from safesteer.memory.shape import Shape, read_shape


def test_a_configuration_alone_gives_the_same_shape(new_chat_model):
    model = new_chat_model(num_key_value_heads=1).model
    assert Shape.of_config(model.config) == Shape.of(model)


def test_a_folder_with_a_configuration_alone(new_chat_model, tmp_path):
    model = new_chat_model().model
    model.config.save_pretrained(tmp_path)
    assert read_shape(ModelSettings(id=str(tmp_path))) == Shape.of(model)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="has a config"):
        read_shape(ModelSettings(id=str(tmp_path)))


def test_the_shape_of_an_adapter_is_its_bases(tiny_model_folder, tmp_path):
    config = {"base_model_name_or_path": str(tiny_model_folder)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").touch()
    expected = read_shape(ModelSettings(id=str(tiny_model_folder)))
    assert read_shape(ModelSettings(id=str(tmp_path))) == expected
    assert expected.positions == 2048
