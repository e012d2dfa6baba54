"""The trainer on a tiny model: its losses against slow ones, its gradients, resuming."""

from __future__ import annotations

import copy
import json
import math
import sys
import types
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from tiny import plain_training
from trl import DistillationConfig

from safesteer import distributed
from safesteer.config.settings import ModelSettings, TrainSettings
from safesteer.direction.vector import Direction
from safesteer.distill import train as train_module
from safesteer.distill import trainer
from safesteer.distill.checkpoints import last_checkpoint
from safesteer.distill.lora import extrapolate
from safesteer.distill.plan import plan_rows
from safesteer.distill.save import save_student
from safesteer.distill.teacher_pass import ForwardPasses
from safesteer.distill.train import train
from safesteer.distill.trainer import SafeSteerTrainer
from safesteer.errors import InputError, SafeSteerError
from safesteer.inference.variant import ModelVariant
from safesteer.models import generate as generation
from safesteer.teacher import Teacher

TOKENS = [10, 40, 77, 120, 200, 305]
CONTEXT = ({"role": "system", "content": "Refuse what is harmful."},)
TIMING = {"seconds", "tokens_per_second"}
KEYS = {
    "step",
    "loss",
    "grad_norm",
    "lr",
    "mass_student",
    "mass_teacher",
    "entropy",
    "completion_length",
    "refusal_rate",
    "anchor_refusal_rate",
    "tokens_per_second",
    "seconds",
}


@pytest.fixture(autouse=True)
def no_warmup(monkeypatch):
    """Without it the first of a few steps has a learning rate of 0."""
    monkeypatch.setattr(train_module, "WARMUP_RATIO", 0.0)


def make_settings(**changes: Any) -> TrainSettings:
    advanced = {"save_steps": changes.pop("save_steps", 2)}
    return plain_training(
        **{
            "max_steps": 2,
            "prompts_per_step": 4,
            "num_generations": 2,
            "anchor_share": 0.5,
            "learning_rate": 1e-2,
            "max_completion_length": 7,
            "lora": {"r": 4, "alpha": 8},
            "advanced": {**advanced, **changes.pop("advanced", {})},
            **changes,
        }
    )


def make_teacher(layer: int = 2) -> Teacher:
    generator = torch.Generator().manual_seed(7)
    return Teacher(Direction(torch.randn(32, generator=generator) * 2, layer), CONTEXT)


def prompts(name: str, count: int = 6) -> list[tuple[dict[str, str], ...]]:
    return [
        ({"role": "user", "content": f"{name} request {'very ' * i}{i}"},) for i in range(count)
    ]


def run(
    model: Any, folder: Path, teacher: Teacher | None = None, **changes: Any
) -> tuple[Any, list[dict[str, Any]]]:
    """Train, and return the student and the lines of metrics.jsonl."""
    # Many tokens end a turn, so that completions have different lengths.
    model.model.generation_config.eos_token_id = [model.tokenizer.eos_token_id, *range(100, 160)]
    extra = {key: changes.pop(key) for key in ("on_update", "frozen", "seed") if key in changes}
    student = train(
        model,
        teacher or make_teacher(),
        TOKENS,
        prompts("harmful"),
        prompts("harmless"),
        make_settings(**changes),
        folder=folder,
        **extra,
    )
    return student, read_metrics(folder)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_timing(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def weights(student: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in student.named_parameters()}


@pytest.fixture
def recorded(monkeypatch):
    """Every update's prompts and completions, and a copy of the student that wrote them."""
    updates: list[dict[str, Any]] = []
    original = SafeSteerTrainer._generate_and_score_completions

    def record(self, inputs):  # type: ignore[no-untyped-def]
        student = copy.deepcopy(self.accelerator.unwrap_model(self.model)).eval()
        output = original(self, inputs)
        completions = [
            ids[mask.bool()].tolist()
            for ids, mask in zip(output["completion_ids"], output["completion_mask"], strict=True)
        ]
        updates.append({"rows": inputs, "completions": completions, "student": student})
        return output

    monkeypatch.setattr(SafeSteerTrainer, "_generate_and_score_completions", record)
    return updates


@pytest.fixture
def gradients(monkeypatch):
    """The gradients of every update, before they are clipped."""
    updates: list[list[torch.Tensor]] = []
    original = Accelerator.clip_grad_norm_

    def record(self, parameters, *args, **kwargs):  # type: ignore[no-untyped-def]
        parameters = list(parameters)
        updates.append([p.grad.clone() for p in parameters if p.grad is not None])
        return original(self, parameters, *args, **kwargs)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", record)
    return updates


@torch.no_grad()
def log_probs(
    model: Any, ids: list[int], count: int, vector: Any = None, temperature: float = 1.0
) -> torch.Tensor:
    """Log-probabilities [count, V] of the last `count` tokens of one unpadded sequence."""
    handle = None
    if vector is not None:
        block = model.model.layers[vector.layer]
        handle = block.register_forward_pre_hook(
            lambda module, args: (args[0] + vector.coefficient * vector.vector, *args[1:])
        )
    logits = model(torch.tensor([ids])).logits[0].double()
    if handle is not None:
        handle.remove()
    return torch.log_softmax(logits / temperature, dim=-1)[-count - 1 : -1]


def slow_loss(
    update: dict[str, Any],
    base: Any,
    chat: Any,
    divergence: str,
    anchor_tokens: str = "safety",
    temperature: float = 1.0,
    loss_tokens: str = "safety",
    context: tuple[dict[str, str], ...] = CONTEXT,
    anchor_weight: float = 1.0,
) -> dict[str, float]:
    """The loss of an update as the paper writes it: sequence by sequence, token by token."""
    teacher = make_teacher()
    total, masses_s, masses_t, entropies = 0.0, [], [], []
    for row, completion in zip(update["rows"], update["completions"], strict=True):
        count = len(completion)
        log_s = log_probs(update["student"], chat.ids(row["prompt"]) + completion, count)
        if row["anchor"]:
            log_t = log_probs(base, chat.ids(row["prompt"]) + completion, count)
        else:
            taught = chat.ids([*context, *row["prompt"]]) + completion
            log_t = log_probs(base, taught, count, teacher.direction, temperature)
        sums = 0.0
        for position in range(count):
            whole = (anchor_tokens if row["anchor"] else loss_tokens) == "all"
            ids = list(range(log_s.shape[1])) if whole else TOKENS
            p_s, p_t = log_s[position, ids].exp().tolist(), log_t[position, ids].exp().tolist()
            for s, t in zip(p_s, p_t, strict=True):
                if row["anchor"] or divergence != "forward":
                    sums += s * math.log(s / t)
                if not row["anchor"] and divergence in ("forward", "tail_forward"):
                    sums += t * math.log(t / s)
                if divergence == "generalized" and not whole:
                    sums += t - s
            if not row["anchor"]:
                masses_s.append(log_s[position, TOKENS].exp().sum().item())
                masses_t.append(log_t[position, TOKENS].exp().sum().item())
            entropies.append(-(log_s[position].exp() * log_s[position]).sum().item())
        total += (anchor_weight if row["anchor"] else 1.0) * sums / count

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    return {
        "loss": total / len(update["rows"]),
        "mass_student": mean(masses_s),
        "mass_teacher": mean(masses_t),
        "entropy": mean(entropies),
    }


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
def test_anchors_weigh_what_they_are_said_to(micro_batch, tiny_chat_model, recorded, tmp_path):
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


def test_answers_that_were_begun_are_gone_on_with(tiny_chat_model, recorded, tmp_path):
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


def test_a_begun_prompt_is_no_longer_than_allowed(tiny_chat_model, recorded, tmp_path):
    """The longest beginning counts."""
    chat = tiny_chat_model.chat
    limit = sorted(len(chat.ids(m)) for m in prompts("harmful") + prompts("harmless"))[-1]
    run(
        tiny_chat_model,
        tmp_path,
        prefill_share=0.5,
        advanced={"max_prompt_length": limit, "prefills": ["Of it"]},
    )
    used = [len(chat.ids(r["prompt"], r["prefill"])) for update in recorded for r in update["rows"]]
    assert max(used) <= limit


def test_a_model_that_thinks_first_is_not_begun_for(tiny_chat_model, tmp_path, monkeypatch):
    """One line says what to set."""
    monkeypatch.setattr(type(tiny_chat_model.chat), "thinks", True)
    with pytest.raises(InputError, match="prefill_share"):
        run(tiny_chat_model, tmp_path, prefill_share=0.5)


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
def test_most_updates_may_see_openings_alone(
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
def test_rollouts_of_several_updates_at_once(micro_batch, tiny_chat_model, recorded, tmp_path):
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


@pytest.mark.parametrize("tokens", [1, 40, 4096])
def test_the_teachers_passes_may_be_of_any_size(
    tokens, tiny_chat_model, recorded, tmp_path, monkeypatch
):
    """Cutting the teacher's reading into passes changes no loss."""
    monkeypatch.setattr(train_module, "TEACHER_BATCH_TOKENS", tokens)
    base = copy.deepcopy(tiny_chat_model.model)
    _, metrics = run(tiny_chat_model, tmp_path, max_steps=1)
    expected = slow_loss(recorded[0], base, tiny_chat_model.chat, "generalized")
    assert metrics[0]["loss"] == pytest.approx(expected["loss"], rel=2e-4)


def test_metrics_have_every_key(tiny_chat_model, tmp_path):
    """A line per update with every key of the contract, and none of them empty."""
    _, metrics = run(tiny_chat_model, tmp_path)
    assert [line["step"] for line in metrics] == [1, 2]
    for line in metrics:
        assert set(line) == KEYS
        assert set(line["seconds"]) == {"rollout", "teacher", "student", "optimizer"}
        assert all(value is not None for value in line.values())
        assert 0 < line["mass_student"] < 1 and 0 <= line["refusal_rate"] <= 1
        assert 1 <= line["completion_length"] <= 7
        whole = sum(line["seconds"].values())
        assert line["tokens_per_second"] == pytest.approx(
            line["completion_length"] * 8 / whole, rel=0.2
        )


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("micro_batch", [2, 1])
def test_micro_batches_give_the_gradient_of_the_whole_update(
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


def test_micro_batch_that_does_not_divide_the_update_is_made_smaller(tiny_chat_model, tmp_path):
    """Eight completions by five: micro-batches stay equal, so that each completion counts alike."""
    _, metrics = run(tiny_chat_model, tmp_path, max_steps=1, per_device_train_batch_size=5)
    assert len(metrics) == 1


def lora_from(first_layer: int | str, targets: str | list[str] = "all-linear") -> dict[str, Any]:
    return {"r": 4, "alpha": 8, "first_layer": first_layer, "target_modules": targets}


@pytest.mark.parametrize("first_layer, shared", [("steered", 2), (1, 1), (3, 2), (0, 0)])
def test_teacher_and_student_share_what_is_below_adapters_and_direction(
    first_layer, shared, tiny_chat_model, recorded, gradients, tmp_path, monkeypatch
):
    """The lowest blocks run once for both, with the losses and gradients of two whole passes."""
    base = copy.deepcopy(tiny_chat_model.model)
    teacher = replace(make_teacher(), context=())
    settings = {"anchor_tokens": "all", "lora": lora_from(first_layer)}
    trainers = []
    original = SafeSteerTrainer._compute_loss
    passes = [0, 0]

    def watch(self, student, *args):  # type: ignore[no-untyped-def]
        trainers.append(self)
        layers = student.get_base_model().model.layers
        counts = [
            layer.self_attn.register_forward_hook(lambda *_, place=place: count(place))
            for place, layer in ((0, layers[0]), (1, layers[-1]))
        ]
        try:
            return original(self, student, *args)
        finally:
            for handle in counts:
                handle.remove()

    def count(place: int) -> None:
        passes[place] += 1

    monkeypatch.setattr(SafeSteerTrainer, "_compute_loss", watch)
    _, metrics = run(tiny_chat_model, tmp_path / "shared", teacher, **settings)
    assert trainers[0].shared_blocks == shared
    if shared:
        assert passes[0] * 2 == passes[1] > 0  # the first block once, the last for each
    for update, line in zip(recorded, metrics, strict=True):
        expected = slow_loss(update, base, tiny_chat_model.chat, "generalized", "all", context=())
        for key, value in expected.items():
            assert line[key] == pytest.approx(value, rel=2e-4, abs=1e-6), key
    ours = list(gradients)
    gradients.clear()
    monkeypatch.setattr(ForwardPasses, "shared_blocks", lambda self, student: 0)
    tiny_chat_model.model = base
    run(tiny_chat_model, tmp_path / "apart", teacher, **settings)
    assert len(ours) == len(gradients) == 2
    for mine, plain in zip(ours[0] + ours[1], gradients[0] + gradients[1], strict=True):
        assert torch.allclose(mine, plain, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("change", ["context", "checkpointing", "full"])
def test_nothing_is_shared_where_it_would_be_wrong(change, tiny_chat_model, tmp_path, monkeypatch):
    """A teacher that reads something else, blocks that run twice, weights that all move."""
    shared: list[int] = []
    original = SafeSteerTrainer._compute_loss

    def watch(self, *args):  # type: ignore[no-untyped-def]
        shared.append(self.shared_blocks)
        return original(self, *args)

    monkeypatch.setattr(SafeSteerTrainer, "_compute_loss", watch)
    teacher = make_teacher() if change == "context" else replace(make_teacher(), context=())
    run(
        tiny_chat_model,
        tmp_path,
        teacher,
        max_steps=1,
        lora=lora_from(2),
        gradient_checkpointing=change == "checkpointing",
        method="full" if change == "full" else "lora",
    )
    assert shared == [0]


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_adapters_lie_from_the_first_layer_on(targets, tiny_chat_model, tmp_path):
    """Every linear layer named, in the blocks from the steered one on, and nowhere else."""
    student, _ = run(tiny_chat_model, tmp_path, max_steps=1, lora=lora_from("steered", targets))
    names = [name for name, p in student.named_parameters() if p.requires_grad and "lora_A" in name]
    kinds = 7 if targets == "all-linear" else 2
    layers = len(tiny_chat_model.model.model.layers)
    assert len(names) == kinds * (layers - 2)
    assert all(int(name.split(".layers.")[1].split(".")[0]) >= 2 for name in names)


def test_a_first_layer_that_cannot_be_is_said_in_one_line(tiny_chat_model, tmp_path):
    """PEFT's own errors name none of our settings."""
    with pytest.raises(InputError, match="first_layer = 1 needs all-linear or a list"):
        run(tiny_chat_model, tmp_path, lora=lora_from(1, "q_proj"))
    with pytest.raises(InputError, match="'steered', but the teacher is not steered"):
        run(tiny_chat_model, tmp_path, Teacher(None, CONTEXT), lora=lora_from("steered"))


@pytest.mark.parametrize("method, micro_batch", [("lora", None), ("full", None), ("lora", 4)])
def test_an_update_that_does_not_fit_is_done_in_smaller_parts(
    method, micro_batch, tiny_chat_model, tmp_path, monkeypatch, caplog
):
    """Out of memory in the third update: from the checkpoint on, halved, with the same result."""
    plain_model = copy.deepcopy(tiny_chat_model)
    settings = {"method": method, "per_device_train_batch_size": micro_batch, "max_steps": 3}
    expected, lines = run(plain_model, tmp_path / "plain", **settings)
    original = SafeSteerTrainer._compute_loss
    tried: list[int] = []

    def small(self, student, inputs, *args):  # type: ignore[no-untyped-def]
        tried.append(len(inputs["anchor"]))
        if self.state.global_step == 2 and len(inputs["anchor"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return original(self, student, inputs, *args)

    monkeypatch.setattr(SafeSteerTrainer, "_compute_loss", small)
    with caplog.at_level("WARNING", "safesteer"):
        student, repeated = run(tiny_chat_model, tmp_path / "halved", **settings)
    sizes = [8, 8, 8, 4, 2, 2, 2, 2] if micro_batch is None else [4, 4, 4, 4, 4, 2, 2, 2, 2]
    assert tried == sizes
    assert "micro-batches of 2" in caplog.text
    assert [line["step"] for line in repeated] == [1, 2, 3]
    for one, other in zip(repeated, lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    mine, theirs = weights(student), weights(expected)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.allclose(value, theirs[name], atol=2e-5), name


def test_a_single_completion_that_does_not_fit_is_said(tiny_chat_model, tmp_path, monkeypatch):
    """The message says what would fit, and the model is left as it was."""

    def never(self, *args):  # type: ignore[no-untyped-def]
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 byte")

    monkeypatch.setattr(SafeSteerTrainer, "_compute_loss", never)
    with pytest.raises(SafeSteerError, match=r"at a time\. Try: train\.gradient_checkpointing"):
        run(tiny_chat_model, tmp_path)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_end_the_training(
    bad, tiny_chat_model, tmp_path, monkeypatch
):
    original, updates = Accelerator.clip_grad_norm_, []

    def spoil(self, parameters, *args, **kwargs):  # type: ignore[no-untyped-def]
        parameters = list(parameters)
        updates.append(None)
        if len(updates) == 3:  # the loss of this update is as it should be
            next(p for p in parameters if p.grad is not None).grad.fill_(bad)
        return original(self, parameters, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "clip_grad_norm_", spoil)
        with pytest.raises(SafeSteerError, match="non-finite gradients at step 3"):
            run(tiny_chat_model, tmp_path, max_steps=6, save_steps=2)
    # What was good stays, and the same call goes on from there.
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert last_checkpoint(tmp_path).name == "checkpoint-2"
    _, resumed = run(tiny_chat_model, tmp_path, max_steps=6, save_steps=2)
    _, undisturbed = run(tiny_chat_model, tmp_path / "again", max_steps=6, save_steps=2)
    assert [line["step"] for line in resumed] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in resumed] == [line["loss"] for line in undisturbed]


def test_cudnn_has_no_part_in_the_attention_of_a_training(tiny_chat_model, tmp_path):
    allowed = torch.backends.cuda.cudnn_sdp_enabled
    assert allowed()
    seen: list[bool] = []
    run(tiny_chat_model, tmp_path, on_update=lambda *_: seen.append(allowed()))
    assert seen == [False, False]
    assert allowed()


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


def test_lora_leaves_the_base_weights_as_they_were(tiny_chat_model, tmp_path):
    """Only adapter weights are trained; every weight of the base is bit for bit the same."""
    before = weights(tiny_chat_model.model)
    student, _ = run(tiny_chat_model, tmp_path)
    after = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): value
        for name, value in weights(student).items()
        if "lora_" not in name
    }
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    lora = {name: value for name, value in weights(student).items() if "lora_B" in name}
    assert lora and all(value.abs().max() > 0 for value in lora.values())
    assert not any(p.grad is not None for n, p in student.named_parameters() if "lora_" not in n)


def test_nothing_is_asked_of_the_hub(tiny_chat_model, tmp_path, monkeypatch):
    """PEFT looks a base up by its name when it saves; checkpoints and adapters do without."""
    asked = []
    monkeypatch.setattr(
        peft.utils.save_and_load, "check_file_exists_on_hf_hub", lambda *args: asked.append(args)
    )
    monkeypatch.setattr("safesteer.distill.save.base_name", lambda base: "owner/name")
    tiny_chat_model.model.name_or_path = "owner/name"
    student, _ = run(tiny_chat_model, tmp_path / "train", save_steps=1)
    assert len(list((tmp_path / "train").glob("checkpoint-*/adapter_model.safetensors"))) == 2
    adapter = tmp_path / "adapter"
    save_student(student, tiny_chat_model.tokenizer, adapter, ModelSettings())
    assert (
        json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "owner/name"
    )
    assert ModelVariant("aligned", tiny_chat_model, student).identity
    assert asked == []


def test_full_training_leaves_the_frozen_copy_alone(tiny_chat_model, new_chat_model, tmp_path):
    """The teacher's weights get no gradient and do not change; every block of the student does."""
    frozen = new_chat_model().model
    before = weights(frozen)
    student, _ = run(tiny_chat_model, tmp_path, method="full", frozen=frozen)
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


def drop_out(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Adapters with dropout, which no setting makes, draw random numbers in every pass."""
    monkeypatch.setattr(peft, "LoraConfig", partial(peft.LoraConfig, lora_dropout=share))


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


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "full"},
        {"per_device_train_batch_size": 2},
        {"dropout": 0.3},
        {"steps_per_generation": 2, "save_steps": 1},
        {"lora": {"r": 4, "alpha": 8, "extrapolation": 0.5}},
        {"lora": {"r": 4, "alpha": 8, "kfac_damping": 0.1}},
    ],
    ids=["lora", "full", "micro-batches", "dropout", "windows", "extrapolated", "whitened"],
)
def test_a_resumed_run_is_the_uninterrupted_one(changes, new_chat_model, tmp_path, monkeypatch):
    """Losses, every other number and the final weights are exactly those of one go."""
    changes = dict(changes)
    drop_out(monkeypatch, changes.pop("dropout", 0.0))
    whole, expected = run(new_chat_model(), tmp_path / "whole", max_steps=4, **changes)

    def stop(line, total):  # type: ignore[no-untyped-def]
        assert total == 4
        if line["step"] == 3:
            raise KeyboardInterrupt

    folder = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        run(new_chat_model(), folder, max_steps=4, on_update=stop, **changes)
    assert len(read_metrics(folder)) == 3  # the third is made again
    (folder / "checkpoint-3").mkdir()  # a kill in the middle of saving
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # and in the middle of a line
    torch.manual_seed(12345)  # what else the process has drawn does not matter
    resumed, found = run(new_chat_model(), folder, max_steps=4, **changes)
    assert without_timing(found) == without_timing(expected)
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    after = weights(resumed)
    assert all(torch.equal(after[name], value) for name, value in weights(whole).items())


def test_a_run_that_ends_within_a_window_resumes_to_its_own_end(new_chat_model, tmp_path):
    """Killed after the last checkpoint: the last window is made again, and no update more."""
    changes = {"max_steps": 3, "steps_per_generation": 2, "save_steps": 2}
    whole, expected = run(new_chat_model(), tmp_path, **changes)
    resumed, found = run(new_chat_model(), tmp_path, **changes)
    assert [line["step"] for line in found] == [1, 2, 3]
    assert without_timing(found) == without_timing(expected)
    after = weights(resumed)
    assert all(torch.equal(after[name], value) for name, value in weights(whole).items())


def test_extrapolation_goes_further_along_the_change(new_chat_model, tmp_path):
    """Half as much again in every adapted matrix, once, however often a finished run is begun."""
    plain, metrics = run(new_chat_model(), tmp_path / "plain")
    folder = tmp_path / "extrapolated"
    stronger = {"r": 4, "alpha": 8, "extrapolation": 0.5}
    run(new_chat_model(), folder, lora=stronger)
    further, found = run(new_chat_model(), folder, lora=stronger)
    assert without_timing(found) == without_timing(metrics)
    changes = {
        name: module.get_delta_weight("default")
        for name, module in plain.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert any(change.abs().max() > 1e-3 for change in changes.values())
    for name, change in changes.items():
        torch.testing.assert_close(
            further.get_submodule(name).get_delta_weight("default"), 1.5 * change
        )


def test_extrapolation_gathers_what_zero_3_has_parted(monkeypatch):
    """Such a parameter is changed by the main process while it is whole, and nowhere else."""
    whole: list[Any] = []

    @contextmanager
    def gathered(parameters, modifier_rank):  # type: ignore[no-untyped-def]
        assert modifier_rank == 0
        whole.extend(parameters)
        yield

    zero = types.ModuleType("deepspeed.zero")
    zero.GatheredParameters = gathered  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed", types.ModuleType("deepspeed"))
    monkeypatch.setitem(sys.modules, "deepspeed.zero", zero)
    student = torch.nn.ModuleDict(
        {"lora_A": torch.nn.Linear(2, 2), "lora_B": torch.nn.Linear(2, 2)}
    )
    student = torch.nn.ModuleDict({"q_proj": student})
    before = weights(student)
    parted = student["q_proj"]["lora_B"].weight
    parted.ds_id = 0
    extrapolate(student, 0.5)
    assert whole == [parted]
    torch.testing.assert_close(parted, 1.5 * before["q_proj.lora_B.weight"])
    torch.testing.assert_close(
        student["q_proj"]["lora_A"].weight, before["q_proj.lora_A.weight"], rtol=0, atol=0
    )
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    extrapolate(student, 0.5)
    torch.testing.assert_close(parted, 1.5 * before["q_proj.lora_B.weight"])


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("shuffled", [True, False])
def test_rows_are_shuffled_as_trl_is_told(window, shuffled, tiny_chat_model, recorded, tmp_path):
    """A plain script's rows, harmful ones first, are mixed unless `shuffle_dataset` is off."""
    rows = [{"prompt": list(m), "anchor": False} for m in prompts("harmful", 8)]
    rows += [{"prompt": list(m), "anchor": True} for m in prompts("harmless", 8)]
    SafeSteerTrainer(
        train_module.with_lora(tiny_chat_model.model, make_settings(), 0),
        DistillationConfig(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=4,
            max_completion_length=3,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            shuffle_dataset=shuffled,
        ),
        Dataset.from_list(rows),
        chat=tiny_chat_model.chat,
        teacher=make_teacher(),
        safety_tokens=TOKENS,
        updates_per_rollout=window,
    ).train()
    seen = [row["anchor"] for window in recorded for row in window["rows"]]
    assert len(seen) == 8
    assert any(seen) == shuffled


def test_seed_decides_the_run(new_chat_model, tmp_path):
    """The same seed gives the same numbers in the same process; another seed gives others."""
    runs = [
        run(new_chat_model(), tmp_path / str(number), max_steps=1, seed=seed)[1]
        for number, seed in enumerate((0, 0, 1))
    ]
    assert without_timing(runs[0]) == without_timing(runs[1]) != without_timing(runs[2])


def test_a_checkpoint_without_its_mark_is_deleted(tmp_path):
    """Of several folders the last whole one counts, whatever was cut short after it."""
    for name in ("checkpoint-2", "checkpoint-10", "checkpoint-12"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint-2", "checkpoint-10"):
        (tmp_path / name / "complete.json").write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert last_checkpoint(tmp_path, 4) is None
    assert not (tmp_path / "checkpoint-12").exists()
    assert last_checkpoint(tmp_path / "nothing") is None


def test_prompts_that_are_too_long_are_left_out(tiny_chat_model, recorded, tmp_path):
    """No row of any update has more prompt tokens than allowed; if none is left, it is an error."""
    chat = tiny_chat_model.chat
    lengths = sorted(len(chat.ids(m)) for m in prompts("harmful") + prompts("harmless"))
    limit = lengths[6]
    run(tiny_chat_model, tmp_path, advanced={"max_prompt_length": limit})
    used = [len(chat.ids(row["prompt"])) for update in recorded for row in update["rows"]]
    assert max(used) <= limit < lengths[-1]
    with pytest.raises(InputError, match="no harmful training prompts are left"):
        run(tiny_chat_model, tmp_path / "none", advanced={"max_prompt_length": 8})


def test_training_all_weights_without_a_frozen_copy_is_refused(tiny_chat_model, tmp_path):
    """Otherwise the teacher would be trained along with the student."""
    settings = make_settings(method="full")
    args = train_module._arguments(settings, tmp_path, 16, 8, 0, (), tiny_chat_model.model)
    with pytest.raises(ValueError, match="frozen copy"):
        SafeSteerTrainer(
            tiny_chat_model.model,
            args,
            None,
            chat=tiny_chat_model.chat,
            teacher=make_teacher(),
            safety_tokens=TOKENS,
        )
