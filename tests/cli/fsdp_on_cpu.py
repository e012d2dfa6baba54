"""The command, on two CPU processes, with FSDP 2: accelerate itself has it for accelerators alone.

torch's FSDP 2 works on the CPU; what stands in its way is accelerate's list of kinds of machines
(`accelerate.state.AcceleratorState`). Here it takes these two processes for one of them.
"""

from __future__ import annotations

import os

import cold
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

import safesteer.pipeline.stages


def train(*arguments, **named):  # type: ignore[no-untyped-def]
    torch.distributed.init_process_group("gloo")
    return real_train(*arguments, **named)


PartialState._prepare_backend = lambda self, *others, **named: ("gloo", DistributedType.MULTI_GPU)
os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
real_train, safesteer.pipeline.stages.train = safesteer.pipeline.stages.train, train
cold.program()
