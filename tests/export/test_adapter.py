"""An exported adapter loads with PEFT. (pytest tests/export)"""

from __future__ import annotations

import json

import pytest

from safesteer.errors import InputError
from safesteer.export.formats import export

EXACT = 1e-4


def test_an_adapter_names_its_base_and_loads_with_peft(make_run, tmp_path):
    from peft import AutoPeftModelForCausalLM

    made = export(make_run(), "adapter", tmp_path / "out")
    assert made.difference <= EXACT
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")


def test_all_weights_trained_have_no_adapter(make_run, tmp_path):
    with pytest.raises(InputError, match="--format merged"):
        export(make_run(method="full"), "adapter", tmp_path / "out")
