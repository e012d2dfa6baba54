"""Dtypes of exported weights. (pytest tests/export)"""

from __future__ import annotations

import torch

from safesteer.export.formats import export


def test_weights_are_stored_in_the_type_of_the_base(make_run, tmp_path):
    made = export(make_run(dtype=torch.bfloat16), "merged", tmp_path / "out")
    assert made.dtype == "bfloat16"
