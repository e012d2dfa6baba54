"""The command, whose second process is killed in the middle of training, after three updates."""

from __future__ import annotations

import os
import signal

import cold

from safesteer.distill.metrics import MetricsFile


def die(self, args, state, control, **others):  # type: ignore[no-untyped-def]
    if state.global_step == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)


MetricsFile.on_step_end = die
cold.program()
