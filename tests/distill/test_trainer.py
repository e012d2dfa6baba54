"""The trainer on a tiny model: its losses against slow ones, its gradients, its rollouts."""

from __future__ import annotations

import copy
import doctest
import math
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from tiny_training import (
    TOKENS,
    drop_out,
    log_probs,
    make_settings,
    make_teacher,
    prompts,
    run,
    slow_loss,
    weights,
)
from trl import DistillationConfig

from safesteer.direction.vector import Direction
from safesteer.distill import trainer
from safesteer.distill.config import SafeSteerConfig
from safesteer.distill.lora import with_lora
from safesteer.distill.plan import plan_rows
from safesteer.distill.trainer import SafeSteerTrainer
from safesteer.errors import InputError
from safesteer.models import generate as generation
from safesteer.teacher import Teacher

pytestmark = pytest.mark.usefixtures("no_warmup")


@pytest.mark.parametrize(
    ("divergence", "tokens"),
    [
        ("generalized", "safety"),
        ("paper", "safety"),
        ("paper", "all"),
        ("forward", "all"),
        ("tail_forward", "all"),
    ],
)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_losses_are_the_definition_on_the_rollouts(
    method, divergence, tokens, tiny_chat_model, recorded, tmp_path
):
    """In the first and in a later update, loss, masses and entropy are those of the slow form.

    Harmful rows are compared with the steered base that reads the teacher's context; anchors with
    the plain base on the student's own prompt, over the whole vocabulary by reverse KL.
    """
    over = {"anchor_tokens": tokens, "loss_tokens": tokens}
    base = copy.deepcopy(tiny_chat_model.model)
    _, metrics = run(tiny_chat_model, tmp_path, method=method, divergence=divergence, **over)
    assert len(metrics) == len(recorded) == 2
    assert len({len(completion) for completion in recorded[0]["completions"]}) > 2
    for update, line in zip(recorded, metrics, strict=True):
        expected = slow_loss(update, base, tiny_chat_model.chat, divergence, **over)
        for key, value in expected.items():
            assert line[key] == pytest.approx(value, rel=2e-4, abs=1e-6), key
    assert metrics[0]["loss"] > 1e-3  # there is something to learn
    still = {**recorded[1], "student": base}
    moved = slow_loss(still, base, tiny_chat_model.chat, divergence, **over)
    assert metrics[1]["loss"] != pytest.approx(moved["loss"], rel=1e-2)  # the student has moved


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_anchors_on_all_of_the_vocabulary(micro_batch, tiny_chat_model, recorded, tmp_path):
    """Harmful rows keep their loss on S, anchors get the reverse KL over the vocabulary."""
    base = copy.deepcopy(tiny_chat_model.model)
    _, metrics = run(
        tiny_chat_model, tmp_path, anchor_tokens="all", per_device_train_batch_size=micro_batch
    )
    for update, line in zip(recorded, metrics, strict=True):
        expected = slow_loss(update, base, tiny_chat_model.chat, "generalized", "all")
        assert line["loss"] == pytest.approx(expected["loss"], rel=2e-4)
    on_safety = slow_loss(recorded[1], base, tiny_chat_model.chat, "generalized")
    assert metrics[1]["loss"] != pytest.approx(on_safety["loss"], rel=1e-2)


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_anchors_weigh_as_configured(micro_batch, tiny_chat_model, recorded, tmp_path):
    """Their share of the loss is multiplied; the harmful rows' stays as it is."""
    base, chat = copy.deepcopy(tiny_chat_model.model), tiny_chat_model.chat
    _, metrics = run(
        tiny_chat_model, tmp_path, anchor_weight=3.0, per_device_train_batch_size=micro_batch
    )
    for update, line in zip(recorded, metrics, strict=True):
        expected = slow_loss(update, base, chat, "generalized", anchor_weight=3.0)
        assert line["loss"] == pytest.approx(expected["loss"], rel=2e-4)
    plain = slow_loss(recorded[1], base, chat, "generalized")
    assert metrics[1]["loss"] != pytest.approx(plain["loss"], rel=1e-2)


def test_prefilled_answers_are_continued(tiny_chat_model, recorded, tmp_path):
    """The loss is the definition; what the teacher is shown begins as the answer does."""
    base, chat = copy.deepcopy(tiny_chat_model.model), tiny_chat_model.chat
    shown = ({"role": "user", "content": "Bad?"}, {"role": "assistant", "content": "I'm sorry."})
    teacher = Teacher(make_teacher().direction, shown)
    _, lines = run(tiny_chat_model, tmp_path, teacher, prefill_share=0.5)
    for update, line in zip(recorded, lines, strict=True):
        total = 0.0
        for row, completion in zip(update["rows"], update["completions"], strict=True):
            words, count = row["prefill"], len(completion)
            answer = [*chat.answer_ids(words), *completion]
            read, vector = chat.ids(row["prompt"]) + answer, None
            taught = read
            if not row["anchor"]:
                said = {"role": "assistant", "content": (words + " I'm sorry.").lstrip()}
                taught = chat.ids([shown[0], said, *row["prompt"]]) + answer
                vector = teacher.direction
            log_s = log_probs(update["student"], read, count)[:, TOKENS]
            log_t = log_probs(base, taught, count, vector)[:, TOKENS]
            p_s, p_t = log_s.exp(), log_t.exp()
            total += (p_s * (log_s - log_t) - p_s + p_t).sum().item() / count
        assert sum(bool(row["prefill"]) for row in update["rows"]) == len(update["rows"]) / 2
        assert line["loss"] == pytest.approx(total / len(update["rows"]), rel=1e-4)


def test_a_surer_teacher(tiny_chat_model, recorded, tmp_path):
    """The temperature divides the teacher's logits on harmful rows, and on no anchor."""
    base = copy.deepcopy(tiny_chat_model.model)
    teacher = replace(make_teacher(), temperature=0.5)
    _, metrics = run(tiny_chat_model, tmp_path, teacher)
    for update, line in zip(recorded, metrics, strict=True):
        expected = slow_loss(update, base, tiny_chat_model.chat, "generalized", temperature=0.5)
        for key, value in expected.items():
            assert line[key] == pytest.approx(value, rel=2e-4, abs=1e-6), key
    plain = slow_loss(recorded[0], base, tiny_chat_model.chat, "generalized")
    assert metrics[0]["loss"] != pytest.approx(plain["loss"], rel=1e-2)


@pytest.mark.parametrize(
    "share, window, whole",
    [
        (0.5, 1, [1, 3]),
        (0.75, 1, [3]),
        (0.6, 1, [2]),
        (0.5, 2, [1]),
        (0.0, 2, [0, 1]),
        (1.0, 1, []),
    ],
)
def test_most_steps_may_have_short_rollouts(
    share, window, whole, tiny_chat_model, recorded, tmp_path
):
    """Rollouts are cut but for windows of updates that lie evenly between them."""
    run(
        tiny_chat_model,
        tmp_path,
        max_steps=4,
        short_rollout_length=2,
        advanced={"short_rollout_share": share},
        steps_per_generation=window,
    )
    longest = [max(map(len, update["completions"])) for update in recorded]
    assert [index for index, length in enumerate(longest) if length > 2] == whole
    assert all(length == 2 for index, length in enumerate(longest) if index not in whole)


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_rollouts_of_several_steps_at_once(micro_batch, tiny_chat_model, recorded, tmp_path):
    """Three updates in windows of two: each gets its own rows, answered by the window's student."""
    _, metrics = run(
        tiny_chat_model,
        tmp_path,
        max_steps=3,
        steps_per_generation=2,
        anchor_tokens="all",
        per_device_train_batch_size=micro_batch,
    )
    assert [len(window["rows"]) for window in recorded] == [16, 16]
    assert [line["step"] for line in metrics] == [1, 2, 3]
    planned = plan_rows(make_settings(max_steps=3), prompts("harmful"), prompts("harmless"), 0)
    rows = recorded[0]["rows"] + recorded[1]["rows"]
    assert [row["prompt"] for row in rows[:24]] == [row["prompt"] for row in planned]
    for index, line in enumerate(metrics):
        window, part = recorded[index // 2], slice(index % 2 * 8, index % 2 * 8 + 8)
        lengths = list(map(len, window["completions"][part]))
        assert line["completion_length"] == pytest.approx(sum(lengths) / 8)
        anchors = [row["anchor"] for row in window["rows"][part]]
        assert sum(anchors) == 4  # half of every update's rows are anchors


def test_losses_of_a_window_are_the_definition_on_its_rollouts(
    tiny_chat_model, recorded, tmp_path, monkeypatch
):
    """The second update's loss is that of the student as it has become, on the older answers."""
    students = []
    original = SafeSteerTrainer._compute_loss

    def watch(self, student, *args):  # type: ignore[no-untyped-def]
        students.append(copy.deepcopy(student).eval())
        return original(self, student, *args)

    monkeypatch.setattr(SafeSteerTrainer, "_compute_loss", watch)
    base = copy.deepcopy(tiny_chat_model.model)
    _, metrics = run(tiny_chat_model, tmp_path, steps_per_generation=2)
    (window,) = recorded
    losses = []
    for index, line in enumerate(metrics):
        part = slice(index * 8, index * 8 + 8)
        update = {
            "rows": window["rows"][part],
            "completions": window["completions"][part],
            "student": students[index],
        }
        expected = slow_loss(update, base, tiny_chat_model.chat, "generalized")
        assert line["loss"] == pytest.approx(expected["loss"], rel=2e-4)
        still = slow_loss({**update, "student": base}, base, tiny_chat_model.chat, "generalized")
        losses.append((expected["loss"], still["loss"]))
    assert losses[1][0] != pytest.approx(losses[1][1], rel=1e-2)  # the student has moved


def test_without_gradient_through_prompts_the_loss_is_the_same(
    tiny_chat_model, recorded, tmp_path, monkeypatch
):
    """In the first step of a window; in later ones the prompts are those that were read before."""
    gradients: list[torch.Tensor] = []
    original = SafeSteerTrainer.training_step

    def watch(self, model, *args):  # type: ignore[no-untyped-def]
        loss = original(self, model, *args)
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
        )
        return loss

    monkeypatch.setattr(SafeSteerTrainer, "training_step", watch)
    base = copy.deepcopy(tiny_chat_model.model)
    advanced = {"prompt_gradient": False}
    _, metrics = run(
        tiny_chat_model, tmp_path / "answers", steps_per_generation=2, advanced=advanced
    )
    (window,) = recorded
    first = {"rows": window["rows"][:8], "completions": window["completions"][:8], "student": base}
    expected = slow_loss(first, base, tiny_chat_model.chat, "generalized")
    assert metrics[0]["loss"] == pytest.approx(expected["loss"], rel=2e-4)
    assert len(metrics) == 2 and metrics[1]["loss"] > 0
    ours = gradients[0]
    gradients.clear()
    tiny_chat_model.model = base
    run(tiny_chat_model, tmp_path / "whole", steps_per_generation=2)
    assert ours.abs().sum() > 0 and not torch.allclose(ours, gradients[0], rtol=1e-2)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("micro_batch", [2, 1])
def test_micro_batches_give_the_gradient_of_the_whole_step(
    method, micro_batch, new_chat_model, gradients, tmp_path
):
    """Loss, gradient and its norm do not depend on how an update is cut into micro-batches."""
    losses = {}
    for size in (None, micro_batch):
        _, metrics = run(
            new_chat_model(),
            tmp_path / str(size),
            method=method,
            max_steps=1,
            per_device_train_batch_size=size,
        )
        losses[size] = metrics[0]
    for key in ("loss", "grad_norm"):
        assert losses[None][key] == pytest.approx(losses[micro_batch][key], rel=1e-4)
    whole, parts = gradients
    assert len(whole) == len(parts) > 0
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=1e-3)
    assert max(gradient.abs().max() for gradient in whole) > 1e-4


def test_rollouts_that_do_not_fit_are_made_in_smaller_batches(
    tiny_chat_model, tmp_path, monkeypatch, caplog
):
    """The smaller size is kept, and every prompt gets its answer."""
    original = generation._continue_batch
    tried: list[int] = []

    def small(student, tokenizer, prompt_ids, *args):  # type: ignore[no-untyped-def]
        tried.append(len(prompt_ids))
        if len(prompt_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return original(student, tokenizer, prompt_ids, *args)

    monkeypatch.setattr(generation, "_continue_batch", small)
    with caplog.at_level("WARNING", "safesteer"):
        _, metrics = run(tiny_chat_model, tmp_path)
    assert tried == [8, 4, *8 * [2]]
    assert caplog.text.count("sequences in a batch") == 2
    assert len(metrics) == 2


def test_full_training_leaves_the_frozen_copy_alone(tiny_chat_model, new_chat_model, tmp_path):
    """The teacher's weights get no gradient and do not change; every block of the student does."""
    frozen = new_chat_model().model
    before = weights(frozen)
    student, _ = run(tiny_chat_model, tmp_path, method="full", base_model=frozen)
    assert all(torch.equal(before[name], value) for name, value in weights(frozen).items())
    assert not any(p.requires_grad or p.grad is not None for p in frozen.parameters())
    assert not frozen.training
    changed = {name for name, value in weights(student).items() if not value.equal(before[name])}
    assert len(changed) == len(before)


def test_student_equal_to_the_teacher_learns_nothing(tiny_chat_model, tmp_path):
    """With anchors' loss and an untrained adapter alone there is no loss: student is teacher."""
    still = Teacher(Direction(torch.zeros(32), 1))
    _, metrics = run(tiny_chat_model, tmp_path, still, max_steps=1)
    assert metrics[0]["loss"] == pytest.approx(0, abs=1e-6)
    assert metrics[0]["mass_student"] == pytest.approx(metrics[0]["mass_teacher"], rel=1e-5)


def test_training_moves_the_student_towards_the_teacher(tiny_chat_model, tmp_path):
    """Many updates on few prompts bring the loss well below where it began."""
    _, metrics = run(tiny_chat_model, tmp_path, max_steps=16, anchor_share=0, save_steps=50)
    losses = [line["loss"] for line in metrics]
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])


def test_rollouts_are_without_dropout_and_the_student_trains_with_it(
    tiny_chat_model, tmp_path, monkeypatch
):
    """While completions are sampled the student is in evaluation mode, in the loss it is not."""
    modes: dict[str, list[bool]] = {"rollout": [], "loss": []}
    original, loss = trainer.generate, trainer.SafeSteerTrainer._compute_loss

    def watch_generate(student, *args, **kwargs):  # type: ignore[no-untyped-def]
        modes["rollout"].append(any(module.training for module in student.modules()))
        return original(student, *args, **kwargs)

    def watch_loss(self, student, *args):  # type: ignore[no-untyped-def]
        result = loss(self, student, *args)
        modes["loss"].append(student.training)
        return result

    monkeypatch.setattr(trainer, "generate", watch_generate)
    monkeypatch.setattr(trainer.SafeSteerTrainer, "_compute_loss", watch_loss)
    drop_out(monkeypatch, 0.5)
    run(tiny_chat_model, tmp_path, max_steps=1)
    assert modes == {"rollout": [False], "loss": [True]}


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("shuffled", [True, False])
def test_rows_are_shuffled_as_configured(window, shuffled, tiny_chat_model, recorded, tmp_path):
    """A plain script's rows, harmful ones first, are mixed unless `shuffle_dataset` is off."""
    rows = [{"prompt": list(m), "anchor": False} for m in prompts("harmful", 8)]
    rows += [{"prompt": list(m), "anchor": True} for m in prompts("harmless", 8)]
    SafeSteerTrainer(
        with_lora(tiny_chat_model.model, make_settings(), 0),
        SafeSteerConfig(
            str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=4,
            max_completion_length=3,
            steps_per_generation=window,
            shuffle_dataset=shuffled,
        ),
        Dataset.from_list(rows),
        processing_class=tiny_chat_model.tokenizer,
        teacher=make_teacher(),
        safety_tokens=TOKENS,
    ).train()
    seen = [row["anchor"] for window in recorded for row in window["rows"]]
    assert len(seen) == 8
    assert any(seen) == shuffled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft": False}, "frozen copy"),
        ({"args": DistillationConfig}, "args is a DistillationConfig. Try: SafeSteerConfig"),
        ({"steps_per_generation": 2}, "steps_per_generation = 2 needs a dataset with a length"),
        ({"weight_decay": 0.1}, "weight_decay = 0.1 does not go with a preconditioner"),
    ],
)
def test_arguments_that_do_not_go_together_are_one_line(change, message, tiny_chat_model, tmp_path):
    """All weights without a frozen copy would train the teacher along with the student."""
    change, model = dict(change), tiny_chat_model.model
    config = change.pop("args", SafeSteerConfig)
    if change.pop("peft", True):
        model = with_lora(model, make_settings(), 0)
    with pytest.raises(InputError, match=message):
        SafeSteerTrainer(
            model,
            config(str(tmp_path), max_steps=1, use_cpu=True, **change),
            Dataset.from_list([{"prompt": list(prompts("x")[0])}]).to_iterable_dataset(),
            processing_class=tiny_chat_model.tokenizer,
            teacher=make_teacher(),
            safety_tokens=TOKENS,
            preconditioner={"some.lora_A.default.weight": torch.eye(2)},
        )


def test_the_example_of_the_class_runs(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = doctest.DocTestParser().get_examples(SafeSteerTrainer.__doc__)
    program = "".join(line.source for line in example)
    exec(program.replace("smollm2-135m", str(tiny_model_folder)), names := {})
    losses = [row["loss"] for row in names["trainer"].state.log_history if "loss" in row]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
