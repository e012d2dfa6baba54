"""The meaning of RUN_OR_MODEL. (pytest tests/runs)"""

from __future__ import annotations

import pytest

from safesteer.errors import InputError
from safesteer.report.compare import read_entrants
from safesteer.runs.directory import RunDirectory
from safesteer.runs.target import find_target


def test_a_config_names_its_model_unless_another_is_given():
    assert find_target(None).settings.model.id == "smollm2-135m"
    qwen = find_target(None, config="qwen3-4b").settings
    other = find_target("owner/other", config="qwen3-4b")
    assert other.settings.model.id == "owner/other"
    assert str(other.path) == "safesteer-runs/other"
    assert qwen.model.id.startswith("Qwen/")
    assert find_target(qwen.model.id).settings == qwen
    published = find_target("owner/other", config="published").settings
    assert published.tokens == qwen.tokens and published.train == qwen.train


def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "manifest.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for read in (find_target, RunDirectory.load, lambda name: read_entrants([name])):
        with pytest.raises(InputError, match=r"is empty|'' does not exist"):
            read("")
