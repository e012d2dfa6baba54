"""A file of answers: what is kept of an interrupted command, and what is refused."""

from __future__ import annotations

import json
import stat
from datetime import datetime
from pathlib import Path

import pytest
import torch

from safesteer.errors import InputError
from safesteer.inference.answer_file import AnswerFile

FACTS = {"prompts": "abc", "temperature": 0.5}


def rows(*numbers: int) -> dict[int, dict[str, str]]:
    return {number: {"prompt": f"p{number}", "completion": "żółw \ud83d"} for number in numbers}


def begun(path: Path) -> None:
    """The file of a command that was killed after one batch of two answers."""
    file = AnswerFile(path, 3, FACTS)
    assert not file.start("model")
    file.add(rows(2, 0))


def test_answers_are_kept_as_they_come_and_end_in_the_order_of_prompts(tmp_path):
    path = tmp_path / "new" / "answers.jsonl"
    path.parent.mkdir()
    begun(path)
    assert not path.exists()
    file = AnswerFile(path, 3, FACTS)
    assert file.start("model") and file.missing == [1]
    file.add(rows(1))
    file.finish()
    found = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert found == list(rows(0, 1, 2).values())
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_unfinished_answers_are_private(tmp_path):
    begun(tmp_path / "a.jsonl")
    assert stat.S_IMODE((tmp_path / "a.jsonl.partial").stat().st_mode) == 0o600


def test_sampling_goes_on_where_it_was(tmp_path):
    torch.manual_seed(1)
    begun(tmp_path / "a.jsonl")
    expected = torch.rand(3)
    torch.manual_seed(2)
    AnswerFile(tmp_path / "a.jsonl", 3, FACTS).start("model")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("cut", [1, 20, 4000])
def test_a_cut_last_line_is_one_batch_to_do_again(tmp_path, cut):
    path, partial = tmp_path / "a.jsonl", tmp_path / "a.jsonl.partial"
    begun(path)
    file = AnswerFile(path, 3, FACTS)
    file.start("model")
    file.add(rows(1))
    partial.write_bytes(partial.read_bytes()[: -1 - cut])
    file = AnswerFile(path, 3, FACTS)
    assert file.start("model") and file.missing == [1]
    file.add(rows(1))
    assert AnswerFile(path, 3, FACTS).missing == []


def test_answers_of_other_prompts_settings_or_weights_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    begun(path)
    with pytest.raises(InputError, match=r"a\.jsonl\.partial .* another temperature\. Try: "):
        AnswerFile(path, 3, {**FACTS, "temperature": 0.1})
    with pytest.raises(InputError, match="another model"):
        AnswerFile(path, 3, FACTS).start("other weights")
    assert AnswerFile(path, 3, FACTS).missing == [1]
    file = AnswerFile(path, 3, FACTS, force=True)
    assert not file.start("other weights") and file.missing == [0, 1, 2]
    file.add(rows(0))
    # The same command goes on with what it began itself.
    assert AnswerFile(path, 3, FACTS, force=True).start("other weights")


def test_a_file_of_someone_else_beside_it_is_kept(tmp_path):
    (tmp_path / "a.jsonl.partial").write_text('{"mine": 1}\n')
    with pytest.raises(InputError, match="is in the way"):
        AnswerFile(tmp_path / "a.jsonl", 3, FACTS)
    assert (tmp_path / "a.jsonl.partial").read_text() == '{"mine": 1}\n'


def test_a_device_gets_all_answers_at_the_end():
    file = AnswerFile(Path("/dev/null"), 1, FACTS)
    assert not file.start("model")
    file.add(rows(0))
    file.finish()
    assert not Path("/dev/null.partial").exists()


def test_the_date_of_the_template_stays_that_of_the_first_answers(tmp_path):
    path, date = tmp_path / "a.jsonl", "2026-11-30T23:59:58"
    file = AnswerFile(path, 2, FACTS)
    assert file.date is None
    file.start("model", date)
    file.add(rows(1))
    resumed = AnswerFile(path, 2, FACTS)
    assert resumed.date == datetime.fromisoformat(date)
    assert resumed.start("model", date) and resumed.missing == [0]
    with pytest.raises(InputError, match="another date"):
        AnswerFile(path, 2, FACTS).start("model", "2026-12-01T00:00:00")
