"""Rows of the training set as token ids, and their strengths."""

import pytest
from datasets import Dataset

from safesteer.distill.rows import check_strengths, tokenize_row
from safesteer.errors import InputError
from safesteer.teacher import Teacher

SHOWN = ({"role": "user", "content": "Bad?"}, {"role": "assistant", "content": "I'm sorry."})
PROMPT = [{"role": "user", "content": "Worse?"}]


def test_student_and_teacher_read_their_own_prompts(tiny_chat_model):
    chat, teacher = tiny_chat_model.chat, Teacher(context=SHOWN)
    row = tokenize_row(chat, teacher, {"prompt": PROMPT, "prefill": "Sure,", "anchor": False})
    assert row.student_ids == chat.ids(PROMPT, "Sure,")
    assert row.teacher_ids == chat.ids(teacher.messages(PROMPT, "Sure,"), "Sure,")
    assert row.prefilled and row.strength == 1


def test_an_anchor_is_read_alike_and_missing_columns_have_defaults(tiny_chat_model):
    anchor, plain = (
        tokenize_row(tiny_chat_model.chat, Teacher(context=SHOWN), row)
        for row in ({"prompt": PROMPT, "anchor": True}, {"prompt": PROMPT})
    )
    assert anchor.teacher_ids == anchor.student_ids == plain.student_ids
    assert (
        (anchor.strength, plain.strength) == (0, 1)
        and not plain.prefilled
        and len(plain.teacher_ids) > len(PROMPT)
    )


def test_a_wrongly_refused_prompt_is_read_without_the_refusals_of_the_context(tiny_chat_model):
    row = {"prompt": PROMPT, "anchor": True, "strength": -0.5}
    read = tokenize_row(tiny_chat_model.chat, Teacher(context=SHOWN), row)
    assert read.strength == -0.5 and read.teacher_ids == read.student_ids


def rows(*strengths: float) -> list[dict]:
    return [
        {"prompt": [{"role": "user", "content": str(n)}], "strength": strength}
        for n, strength in enumerate(strengths)
    ]


def test_no_training_repairs_more_prompts_than_it_teaches_to_refuse():
    """Prompts count, not rows: a harmful one that is repeated stays one."""
    check_strengths(Dataset.from_list(rows(1, 1, -1, -1, 0, 0, 0)))
    repeated = [*rows(1, -1, -1), *rows(1)]
    for found in (rows(-1), rows(1, 0, -1, -1), repeated):
        with pytest.raises(InputError, match="at least as many"):
            check_strengths(Dataset.from_list(found))
    with pytest.raises(InputError, match="dataset with a length"):
        check_strengths(Dataset.from_list(rows(1, -1)).to_iterable_dataset())
    check_strengths(Dataset.from_list([{"prompt": PROMPT}]))
    check_strengths(Dataset.from_list([{"prompt": PROMPT}]).to_iterable_dataset())
    check_strengths(None)
