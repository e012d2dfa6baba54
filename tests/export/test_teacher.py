"""An exported teacher is an ordinary model, or is refused in one line. (pytest tests/export)"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from safesteer.direction.vector import Direction
from safesteer.errors import InputError
from safesteer.export import teacher
from safesteer.export.formats import export
from safesteer.models.chat import ChatRenderer
from safesteer.teacher import Teacher, demonstrations

EXACT = 1e-4


@pytest.mark.parametrize("context", ["none", "system-prompt", "refusals"])
@pytest.mark.parametrize("layer", [None, 2])
def test_a_teacher_is_an_ordinary_model(make_run, tmp_path, context, layer):
    if context == "none" and layer is None:
        return
    made = export(
        make_run(context=context, layer=layer, trained=False), "teacher", tmp_path / "out"
    )
    assert made.difference <= EXACT
    names = load_file(tmp_path / "out" / "model.safetensors")
    assert ("model.layers.1.mlp.down_proj.bias" in names) == (layer is not None)


def test_a_teacher_with_tied_weights(make_run, tmp_path, build):
    run = make_run(build("llama-tied-padded"), trained=False)
    assert export(run, "teacher", tmp_path / "out").difference <= EXACT
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "layer", "said"),
    [("llama", 0, "before the first block"), ("qwen2", 2, "no bias"), ("gemma2", 2, "no bias")],
)
def test_a_teacher_that_cannot_be_folded(make_run, tmp_path, build, name, layer, said):
    with pytest.raises(InputError, match=said) as error:
        export(make_run(build(name), layer=layer, trained=False), "teacher", tmp_path / "out")
    assert "--format steered" in str(error.value)


def test_a_fold_that_is_not_exact_is_refused(make_run, tmp_path, monkeypatch):
    """Here into a layer of the wrong block, as where a norm stands behind it."""
    right = teacher._last_linear
    monkeypatch.setattr(teacher, "_last_linear", lambda model, layer: right(model, layer - 1))
    with pytest.raises(InputError, match="not exact"):
        export(make_run(trained=False), "teacher", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("context", ["refusals", "demonstrations", "system-prompt"])
def test_a_template_with_the_teachers_context(new_chat_model, context):
    own = {
        "refusals": demonstrations(2, refusals_only=True),
        "demonstrations": demonstrations(3),
        "system-prompt": ({"role": "system", "content": 'It\'s "safe" {{ 1 }}\n\\n caf\u00e9'},),
    }[context]
    plain, other = new_chat_model().chat, new_chat_model().tokenizer
    other.chat_template = teacher.template_with_context(other.chat_template, own)
    user = {"role": "user", "content": "Hi"}
    for messages in ([user], [{"role": "system", "content": "Be brief."}, user]):
        assert ChatRenderer(other).text(messages) == plain.text(
            Teacher(None, own).messages(messages)
        )


def test_biases_are_added_without_changing_the_model(new_chat_model):
    """Folding a direction of zeros: the same logits from a model that has biases."""
    model = new_chat_model().model
    ids = torch.arange(3, 20)[None]
    plain = model(ids).logits
    folded = teacher.folded(model, Direction(torch.zeros(32), 2))
    assert folded.config.mlp_bias and torch.equal(folded(ids).logits, plain)
