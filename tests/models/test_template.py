"""The clock of templates, and templates that change or leave out what the user says."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
import trl
from tiny import CHAT_TEMPLATE, make_tokenizer

from safesteer.errors import InputError
from safesteer.models.chat import ChatRenderer

HELLO = [{"role": "user", "content": "Hello."}]
DATED = "{{ strftime_now('%d %b %Y %H:%M') }} " + CHAT_TEMPLATE
NOW = datetime(2026, 11, 30, 23, 59, 58)


def with_template(template: str, **changes: str) -> ChatRenderer:
    """A renderer of the tiny tokenizer with another template."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    for name, value in changes.items():
        assert name in template
        tokenizer.chat_template = tokenizer.chat_template.replace(name, value)
    return ChatRenderer(tokenizer, now=NOW)


def test_the_date_of_a_template_stands_still():
    """The given time is rendered, whenever; elsewhere the clock of transformers goes on."""
    chat = with_template(DATED)
    assert chat.text(HELLO).startswith("30 Nov 2026 23:59 ")
    assert chat.date == "2026-11-30T23:59:58" and any("2026-11-30" in n for n in chat.notes)
    rendered = chat.tokenizer.apply_chat_template(HELLO, tokenize=False)
    assert rendered.startswith(datetime.now().strftime("%d %b %Y"))
    assert with_template(CHAT_TEMPLATE).date is None
    today = ChatRenderer(chat.tokenizer)
    assert today.text(HELLO).startswith(today.now.strftime("%d %b %Y %H:%M"))


@pytest.mark.parametrize(
    "content", ["", "''", "'always the same'", "messages[0]['content'][:2]", "'\\ue000'"]
)
def test_a_template_that_leaves_out_the_users_text_is_refused(content):
    template = CHAT_TEMPLATE.replace("message['content']", content or "message['role']")
    with pytest.raises(InputError, match=r"leaves out the user's text.*Try: --chat-template"):
        with_template(template)


def test_a_template_that_draws_at_random_is_refused():
    """No frozen clock could make its tokens the same again."""
    with pytest.raises(InputError, match="differently each time"):
        with_template("{{ range(9) | random }}" + CHAT_TEMPLATE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("message['content']", ""),
        ("message['content'] | trim", "removes white space at the ends of"),
        ("message['content'] | lower", "changes case or white space of"),
        ("message['content'] | upper | trim", "changes case or white space of"),
        ("message['content'].split() | join(' ')", "changes case or white space of"),
        ("message['content'] | escape", "changes"),
        ("message['content'][:500]", "changes"),
    ],
)
def test_a_template_that_changes_the_users_text_is_reported(content, said):
    chat = with_template(CHAT_TEMPLATE.replace("message['content']", content))
    assert chat.change == said
    assert chat.notes == ([f"the chat template {said} the user's text"] if said else [])
    assert chat.ids(HELLO)


def test_a_template_that_leaves_out_one_role_is_refused_with_it():
    """A system prompt that the model never reads would pass for one that does nothing."""
    template = "{% for message in messages if message['role'] != 'system' %}"
    chat = with_template(CHAT_TEMPLATE.replace("{% for message in messages %}", template))
    assert chat.ids(HELLO)
    with pytest.raises(InputError, match=r"leaves out the system message .* system, user\. Try"):
        chat.ids([{"role": "system", "content": "Be brief."}, *HELLO])


def test_a_tokenizer_without_an_end_and_padding_is_refused():
    tokenizer = make_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = None
    with pytest.raises(InputError, match=r"no token that ends a text.*Try: set eos_token"):
        ChatRenderer(tokenizer)


TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_templates_of_real_models_are_read_rightly(path):
    """None is refused, and the most that one does to the user's text is to trim it."""
    chat = with_template(path.read_text("utf-8"))
    assert chat.change in ("", "removes white space at the ends of")
    assert not chat.unclosed
    turns = [*HELLO, {"role": "assistant", "content": "Yes."}, *HELLO]
    assert chat.ids(HELLO) and chat.ids(turns)
