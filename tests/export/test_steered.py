"""The steered file for lm-eval. (pytest tests/export)"""

from __future__ import annotations

import pytest
import torch

from safesteer.errors import InputError
from safesteer.export import steered
from safesteer.export.formats import export

EXACT = 1e-4


@pytest.mark.parametrize("layer", [0, 2])
def test_lm_eval_reads_the_steered_file(make_run, tmp_path, layer):
    pytest.importorskip("lm_eval")
    made = export(make_run(layer=layer, trained=False), "steered", tmp_path / "out")
    assert made.difference <= EXACT and made.read_by == ["lm-eval"]
    content = torch.load(tmp_path / "out" / steered.FILE_NAME, weights_only=True)
    (name,) = content
    assert name == ("layers.1" if layer else "embed_tokens")
    assert content[name]["steering_coefficient"] == 1.5


def test_a_steered_file_needs_steering_and_lm_eval(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(steered.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"safesteer\[eval\]"):
        export(make_run(trained=False), "steered", tmp_path / "out")
    with pytest.raises(InputError, match="not steered"):
        export(make_run(layer=None, trained=False), "steered", tmp_path / "out")
