"""First tokens of refusals, with the tiny tokenizer."""

from safesteer.direction.refusal_tokens import refusal_first_tokens


def test_refusal_tokens_are_the_first_tokens_of_refusals(tiny_chat_model):
    """Each is the first token of some refusal as this tokenizer writes it, once."""
    chat = tiny_chat_model.chat
    tokens = refusal_first_tokens(chat)
    assert tokens == sorted(set(tokens)) and len(tokens) >= 3
    assert chat.answer_ids("Sorry,")[0] in tokens and chat.answer_ids("I cannot")[0] in tokens
    assert (
        chat.answer_ids("Sure")[0] not in tokens
        or chat.answer_ids("Sure")[0] == (chat.answer_ids("Sorry,")[0])
    )
