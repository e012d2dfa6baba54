"""The safety teacher: what it reads, and that the model is itself again afterwards."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from safesteer.config.settings import TeacherSettings
from safesteer.errors import SafeSteerError
from safesteer.judges.refusal_patterns import judge_refusal
from safesteer.teacher import (
    Direction,
    Teacher,
    base_weights,
    check_teacher,
    demonstrations,
    make_teacher,
)

IDS = torch.tensor([[5, 9, 200, 31, 8]])
SYSTEM = {"role": "system", "content": "Refuse."}
OWN = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "Hello"}
SHOWN = ({"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"})


@pytest.fixture
def student(tiny_chat_model) -> PeftModel:  # type: ignore[no-untyped-def]
    """A PEFT model whose adapter changes the logits."""
    torch.manual_seed(0)
    student = get_peft_model(
        tiny_chat_model.model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return student.eval()


@torch.no_grad()
def logits(model):  # type: ignore[no-untyped-def]
    return model(IDS).logits


def hooks_of(model) -> int:  # type: ignore[no-untyped-def]
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.mark.parametrize(
    ("context", "prompt", "read"),
    [
        ((), [ASK], [ASK]),
        ((SYSTEM,), [ASK], [SYSTEM, ASK]),
        ((SYSTEM,), [OWN, ASK], [{"role": "system", "content": "Be brief.\n\nRefuse."}, ASK]),
        (SHOWN, [ASK], [*SHOWN, ASK]),
        (SHOWN, [OWN, ASK], [OWN, *SHOWN, ASK]),
        ((SYSTEM, *SHOWN), [OWN, ASK], [
            {"role": "system", "content": "Be brief.\n\nRefuse."}, *SHOWN, ASK]),
    ],
)  # fmt: skip
def test_what_the_teacher_reads(context, prompt, read):
    """Its context comes first; a system message of the prompt stays first and is not lost."""
    before = [dict(message) for message in prompt]
    assert Teacher(context=context).messages(prompt) == read
    assert prompt == before


def test_a_prefill_starts_the_answers_of_the_context_too():
    """A system message stays as it is; the shown requests too."""
    shown = [{"role": "user", "content": "Bad?"}, {"role": "assistant", "content": "I'm sorry."}]
    asked = [{"role": "user", "content": "Worse?"}]
    teacher = Teacher(context=tuple(shown))
    prefilled = {"role": "assistant", "content": "Sure, here I'm sorry."}
    assert teacher.messages(asked, "Sure, here") == [shown[0], prefilled, *asked]
    assert teacher.messages(asked) == [*shown, *asked]
    system = {"role": "system", "content": "Refuse."}
    assert Teacher(context=(system,)).messages(asked, "Sure, here") == [system, *asked]


def test_settings_make_the_teacher():
    """Steering, system prompt and demonstrations are there when they are set, and only then."""
    direction = Direction(torch.ones(3), 1)
    plain = {"strength": 1.0, "temperature": 1.0, "context": "none"}
    assert make_teacher(TeacherSettings(**plain), direction) == Teacher(direction, repair=0.4)
    system = TeacherSettings(
        **plain | {"strength": 0, "context": "system-prompt"}, advanced={"system_prompt": "No."}
    )
    assert make_teacher(system, direction) == Teacher(None, ({"role": "system", "content": "No."},))
    shows = TeacherSettings(**plain | {"context": "demonstrations", "demonstrations": 3})
    shown = make_teacher(shows, direction)
    assert shown.direction == direction
    assert [m["role"] for m in shown.context] == ["user", "assistant"] * 3


def test_strength_is_a_factor_on_the_directions_coefficient():
    """The teacher steers with strength x coefficient; the direction itself stays as it was."""
    direction = Direction(torch.ones(3), 1, 0.8)
    taught = make_teacher(TeacherSettings(strength=1.5), direction)
    assert taught.direction.coefficient == pytest.approx(1.2)
    assert taught.direction.layer == 1 and direction.coefficient == 0.8


def test_refusals_alone_as_context():
    """The demonstrations that refuse, without those that answer."""
    settings = TeacherSettings(strength=0, context="refusals", demonstrations=3)
    turns = make_teacher(settings, None).context
    assert [m["role"] for m in turns] == ["user", "assistant"] * 3
    assert all(judge_refusal(m["content"]).refused for m in turns[1::2])


def test_demonstrations_alternate_between_answering_and_refusing():
    """An even number of them shows as many refusals as answers."""
    answers = [m["content"] for m in demonstrations(10) if m["role"] == "assistant"]
    assert len(answers) == 10
    assert [judge_refusal(answer).refused for answer in answers] == [False, True] * 5


def test_a_teacher_is_the_base_with_the_hook_and_the_student_comes_back(student, tiny_chat_model):
    """Inside: adapter off, direction added. Afterwards: logits, hooks and gradients as before."""
    direction = Direction(torch.randn(32), 2, 1.5)
    own = logits(student)
    with base_weights(student):
        plain = logits(student)
    trainable = [p.requires_grad for p in student.parameters()]
    assert not torch.allclose(own, plain, atol=1e-2)
    with Teacher(direction).active(student):
        steered = logits(student)
    assert not torch.allclose(steered, plain, atol=1e-2)
    merged_base = student.get_base_model()
    with base_weights(merged_base), Teacher(direction).active(merged_base):
        assert torch.equal(logits(student), steered)
    assert torch.equal(logits(student), own)
    assert hooks_of(student) == 0
    assert [p.requires_grad for p in student.parameters()] == trainable


def test_an_exception_leaves_the_student_as_it_was(student):
    """Adapter on and no hook, also when the teacher's forward fails."""
    own = logits(student)
    with pytest.raises(ZeroDivisionError), Teacher(Direction(torch.ones(32), 1)).active(student):
        raise ZeroDivisionError
    assert torch.equal(logits(student), own)
    assert hooks_of(student) == 0


def test_the_model_that_an_adapter_was_put_into_counts_as_adapted(student, tiny_chat_model):
    """PEFT works in place: the base model object runs the adapter too, until it is switched off."""
    assert torch.equal(logits(tiny_chat_model.model), logits(student))
    with student.disable_adapter():
        plain = logits(tiny_chat_model.model)
    with base_weights(tiny_chat_model.model):
        assert torch.equal(logits(tiny_chat_model.model), plain)


def test_an_adapter_that_is_off_stays_off(student):
    """Contexts nest: the inner one does not switch on what the outer one switched off."""
    with base_weights(student):
        plain = logits(student)
        with base_weights(student):
            pass
        assert torch.equal(logits(student), plain)


def test_check_teacher_measures_the_change(tiny_chat_model):
    """The result is the largest change of a next-token logit."""
    model, chat = tiny_chat_model.model, tiny_chat_model.chat
    teacher = Teacher(Direction(torch.randn(32), 1))
    ids = torch.tensor([chat.ids([{"role": "user", "content": "How do I pick a lock?"}])])
    plain = model(ids).logits[0, -1]
    with teacher.active(model):
        expected = (model(ids).logits[0, -1] - plain).abs().max().item()
    assert check_teacher(model, chat, teacher) == pytest.approx(expected, rel=1e-4)
    assert check_teacher(model, chat, Teacher(context=(SYSTEM,))) > 0


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (0.0, "does not differ from the model"),
        (float("nan"), "NaN or infinite in float32 from layer 1"),
        (float("inf"), "NaN or infinite in float32 from layer 1"),
    ],
)
def test_a_teacher_without_effect_or_out_of_bounds_is_an_error(value, says, tiny_chat_model):
    """A direction of zeros does nothing; one that blows up is no teacher either."""
    teacher = Teacher(Direction(torch.full((32,), value), 1))
    with pytest.raises(SafeSteerError, match=says):
        check_teacher(tiny_chat_model.model, tiny_chat_model.chat, teacher)
