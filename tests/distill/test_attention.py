"""Attention kernels of a training."""

from __future__ import annotations

import pytest
import torch
from tiny_training import (
    run,
)

pytestmark = pytest.mark.usefixtures("no_warmup")


def test_cudnn_has_no_part_in_the_attention_of_a_training(tiny_chat_model, tmp_path):
    allowed = torch.backends.cuda.cudnn_sdp_enabled
    assert allowed()
    seen: list[bool] = []
    run(tiny_chat_model, tmp_path, on_step=lambda *_: seen.append(allowed()))
    assert seen == [False, False]
    assert allowed()
