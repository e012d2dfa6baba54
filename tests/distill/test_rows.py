"""Rows of the training set as token ids."""

from safesteer.distill.rows import tokenize_row
from safesteer.teacher import Teacher

SHOWN = ({"role": "user", "content": "Bad?"}, {"role": "assistant", "content": "I'm sorry."})
PROMPT = [{"role": "user", "content": "Worse?"}]


def test_student_and_teacher_read_their_own_prompts(tiny_chat_model):
    chat, teacher = tiny_chat_model.chat, Teacher(context=SHOWN)
    row = tokenize_row(chat, teacher, {"prompt": PROMPT, "prefill": "Sure,", "anchor": False})
    assert row.student_ids == chat.ids(PROMPT, "Sure,")
    assert row.teacher_ids == chat.ids(teacher.messages(PROMPT, "Sure,"), "Sure,")
    assert row.prefilled and not row.anchor


def test_an_anchor_is_read_alike_and_missing_columns_have_defaults(tiny_chat_model):
    anchor, plain = (
        tokenize_row(tiny_chat_model.chat, Teacher(context=SHOWN), row)
        for row in ({"prompt": PROMPT, "anchor": True}, {"prompt": PROMPT})
    )
    assert anchor.anchor and anchor.teacher_ids == anchor.student_ids == plain.student_ids
    assert not plain.anchor and not plain.prefilled and len(plain.teacher_ids) > len(PROMPT)
