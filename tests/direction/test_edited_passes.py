"""Prompts read by several edited copies at once give what each copy gives to each prompt alone."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from safesteer.direction import edited_passes as repeated
from safesteer.direction.edited_passes import RepeatedPrompts
from safesteer.models import hidden_states as forward
from safesteer.models.layers import backbone, find_blocks
from safesteer.models.steering import ablate, steer

BEGINNING = [5, 9, 33, 31, 8]
PROMPTS = [BEGINNING + end for end in ([11, 12, 13, 14], [21], [40, 8, 3], [11, 12], [7, 7, 7])]


def chat_model(model):  # type: ignore[no-untyped-def]
    """As much of a ChatModel as is used; a prompt is its token ids."""
    return SimpleNamespace(
        model=model,
        chat=SimpleNamespace(ids=list),
        tokenizer=SimpleNamespace(pad_token_id=0),
    )


def alone(model, edit, vectors):  # type: ignore[no-untyped-def]
    """[C, N, D]: every prompt without padding, under one edit at a time."""
    rows = []
    for vector in vectors:
        with edit(vector):
            rows += [
                backbone(model)(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state
                for ids in PROMPTS
            ]
    return torch.stack([row[0, -1] for row in rows]).reshape(len(vectors), len(PROMPTS), -1)


@pytest.fixture(params=[False, True], ids=["whole", "common beginning"])
def sharing(request, monkeypatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(forward, "_WORTHWHILE", {"cpu": 1 if request.param else 10**9})
    return request.param


@pytest.fixture(params=[1, 6, 100])
def rows(request, monkeypatch):  # type: ignore[no-untyped-def]
    """Rows of a batch: every prompt alone, two prompts of three copies, everything at once."""
    monkeypatch.setattr(repeated, "_ROWS", {"cpu": request.param})


def check(model) -> None:  # type: ignore[no-untyped-def]
    width = model.get_output_embeddings().weight.shape[1]
    torch.manual_seed(0)
    vectors = torch.randn(3, width)
    prompts = RepeatedPrompts(chat_model(model), PROMPTS)
    layers = range(len(find_blocks(model)))
    near = partial(torch.allclose, atol=1e-4)
    plain = alone(model, lambda _: steer(model, 0, torch.zeros(width)), [None])[0]
    for keep in ([], list(layers)):
        assert near(prompts.keep(keep), plain)
        for layer in layers:
            adds = partial(steer, model, layer)
            expected = alone(model, adds, vectors)
            assert near(prompts.last_hidden(vectors, adds, layer), expected)
            assert not torch.allclose(expected[0], plain, atol=1e-2)
        removes = partial(ablate, model)
        assert near(prompts.last_hidden(vectors, removes), alone(model, removes, vectors))


def test_every_architecture(model, sharing):
    """Steered at every layer and ablated, with the layer's input kept and without."""
    check(model)


def test_models_that_do_not_allow_every_layer(unusual, sharing):
    """Shared keys and values, several streams, state spaces: whole passes where needed."""
    check(unusual[0])


def test_the_size_of_batches_changes_nothing(tiny_chat_model, sharing, rows):
    """Prompts are sorted by length inside; results are in the order in which they were given."""
    check(tiny_chat_model.model)


def test_blocks_below_a_kept_layer_are_run_once(tiny_chat_model, monkeypatch):
    """However many copies are asked for; and what was kept before is let go."""
    model = tiny_chat_model.model
    prompts = RepeatedPrompts(chat_model(model), PROMPTS)
    prompts.keep([2])
    ran: list[int] = []
    for index, block in enumerate(find_blocks(model)):
        block.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    prompts.last_hidden(torch.ones(4, 32), partial(steer, model, 2), 2)
    assert ran == [2, 3]
    prompts.keep([3])
    ran.clear()
    prompts.last_hidden(torch.ones(4, 32), partial(steer, model, 2), 2)
    assert ran == [0, 1, 2, 3]


def test_layers_are_kept_in_groups_that_fit(tiny_chat_model, monkeypatch):
    """Five prompts of 38 tokens in all, 32 numbers of 4 bytes: 4,864 bytes a layer."""
    prompts = RepeatedPrompts(chat_model(tiny_chat_model.model), PROMPTS)
    assert prompts.groups([3, 1, 2, 2, 1]) == [[1, 2, 3]]
    monkeypatch.setattr(repeated, "_KEPT_BYTES", 2 * 4864)
    assert prompts.groups([3, 1, 2, 2, 1]) == [[1, 2], [3]]
    monkeypatch.setattr(repeated, "_KEPT_BYTES", 1)
    assert prompts.groups([3, 1, 2]) == [[1], [2], [3]]


def test_a_long_prompt_among_short_ones_is_read_alone(tiny_chat_model, monkeypatch):
    """And what is kept of the others holds none of its padding."""
    model = tiny_chat_model.model
    short = [[row, 7, 9] for row in range(1, 12)]
    prompts = RepeatedPrompts(chat_model(model), [*short, [5] * 400])
    shapes: list[tuple[int, int]] = []
    original = backbone(model).forward

    def forward(input_ids=None, **named):  # type: ignore[no-untyped-def]
        shapes.append(tuple(input_ids.shape))
        return original(input_ids=input_ids, **named)

    monkeypatch.setattr(backbone(model), "forward", forward)
    prompts.keep([2])
    prompts.last_hidden(torch.ones(3, 32), partial(steer, model, 2), 2)
    assert shapes[-4:] == [(11, 3), (1, 400), (33, 3), (3, 400)]
    assert sum(len(row) for row in prompts._kept[2][1]) == 433
