import sys
import time
import types

import pytest

from safesteer.runs import system


def test_versions_name_the_interpreter_and_only_what_is_installed(monkeypatch):
    monkeypatch.setattr(system, "PACKAGES", ("pytest", "no-such-package-here"))
    assert list(system.versions()) == ["python", "pytest"]


def test_hardware_has_plausible_numbers():
    found = system.hardware()
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 1 << 28
    assert found["cpu"]
    assert isinstance(found["gpus"], list)


def test_the_sampler_sees_memory_that_is_gone_at_the_end():
    sampler = system.MemorySampler(interval=0.01)
    sampler.start()
    before = sampler.peak_bytes
    ballast = b"\1" * (128 << 20)
    deadline = time.monotonic() + 20
    while sampler.peak_bytes < before + (100 << 20) and time.monotonic() < deadline:
        time.sleep(0.01)
    del ballast
    sampler.stop()
    assert sampler.peak_bytes >= before + (100 << 20)
    assert sampler._thread is not None
    assert not sampler._thread.is_alive()


def test_gpu_memory_is_added_when_torch_used_a_gpu(monkeypatch: pytest.MonkeyPatch):
    reset: list[int] = []
    cuda = types.SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        reset_peak_memory_stats=reset.append,
        max_memory_allocated=lambda device: 1 << 40,
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    sampler = system.MemorySampler()
    sampler.start()
    sampler.stop()
    assert reset == [0, 1]
    assert sampler.gpu_peak_bytes == 2 << 40
    assert sampler.peak_bytes > 2 << 40


def test_measuring_does_not_set_up_a_gpu(monkeypatch: pytest.MonkeyPatch):
    cuda = types.SimpleNamespace(is_initialized=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    assert system.MemorySampler().gpu_peak_bytes == 0
