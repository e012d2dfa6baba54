"""Rows of the training set as token ids."""

from safesteer.distill.rows import RowTokenizer
from safesteer.teacher import Teacher

SHOWN = ({"role": "user", "content": "Bad?"}, {"role": "assistant", "content": "I'm sorry."})
PROMPT = [{"role": "user", "content": "Worse?"}]


def test_student_and_teacher_read_their_own_prompts(tiny_chat_model):
    chat, teacher = tiny_chat_model.chat, Teacher(context=SHOWN)
    tokenize = RowTokenizer(chat, teacher)
    row = tokenize({"prompt": PROMPT, "prefill": "Sure,", "anchor": False})
    assert row.student_ids == chat.ids(PROMPT, "Sure,")
    assert row.teacher_ids == chat.ids(teacher.messages(PROMPT, "Sure,"), "Sure,")
    assert row.prefilled and not row.anchor


def test_an_anchor_is_read_alike_and_missing_columns_have_defaults(tiny_chat_model):
    tokenize = RowTokenizer(tiny_chat_model.chat, Teacher(context=SHOWN))
    anchor, plain = tokenize({"prompt": PROMPT, "anchor": True}), tokenize({"prompt": PROMPT})
    assert anchor.anchor and anchor.teacher_ids == anchor.student_ids == plain.student_ids
    assert not plain.anchor and not plain.prefilled and len(plain.teacher_ids) > len(PROMPT)


def test_each_row_is_rendered_once(tiny_chat_model, monkeypatch):
    rendered = []
    original = tiny_chat_model.chat.ids
    monkeypatch.setattr(
        tiny_chat_model.chat, "ids", lambda *given: rendered.append(given) or original(*given)
    )
    tokenize = RowTokenizer(tiny_chat_model.chat, Teacher(context=SHOWN))
    rows = [{"prompt": PROMPT, "anchor": anchor} for anchor in (False, True)] * 4
    assert len({id(tokenize(row)) for row in rows}) == 2
    assert len(rendered) == 3
