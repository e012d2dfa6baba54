"""`safesteer doctor`. (pytest tests/cli)"""

from __future__ import annotations


def test_doctor_looks_at_a_model(safesteer, tiny_model_folder):
    outcome = safesteer("doctor", tiny_model_folder)
    assert outcome.code == 0
    for said in ("torch", "layers", "<|im_start|>", "steering works", "memory on", "80 GB"):
        assert said in outcome.out


def test_doctor_needs_no_weights_for_the_memory(safesteer, tiny_model_folder, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_model_folder / "config.json").read_bytes())
    outcome = safesteer("doctor", folder, "--config-only")
    assert outcome.code == 0
    for said in ("direction", "evaluate", "LoRA", "all weights", "80 GB"):
        assert said in outcome.out
    assert "steering works" not in outcome.out
    (folder / "config.json").write_text("{}")
    outcome = safesteer("doctor", folder, "--config-only")
    assert outcome.code == 2
    assert "config.json" in outcome.err
