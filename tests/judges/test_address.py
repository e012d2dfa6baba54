"""The address and the key of a judging server."""

from __future__ import annotations

import pytest

from safesteer.errors import InputError
from safesteer.judges.address import completions_url, read_key


def test_the_query_is_sent_and_not_shown() -> None:
    url, shown = completions_url("http://host:8000/v1/?api-version=2")
    assert url == "http://host:8000/v1/chat/completions?api-version=2"
    assert shown == "http://host:8000/v1/chat/completions"


@pytest.mark.parametrize("url", [None, ""])
def test_no_address_is_an_error(url: str | None) -> None:
    with pytest.raises(InputError, match="base_url"):
        completions_url(url)


def test_a_key_is_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", " abc\n")
    assert read_key("JUDGE_KEY") == "abc"
    assert read_key("JUDGE_KEY_THAT_IS_NOT_SET") == ""
    monkeypatch.setenv("JUDGE_KEY", "abc def")
    with pytest.raises(InputError, match="JUDGE_KEY holds no key") as error:
        read_key("JUDGE_KEY")
    assert "abc" not in str(error.value)
