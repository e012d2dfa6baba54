"""Localised on-policy distillation on TRL's engine: rollouts by the student, loss on S.

`SafeSteerTrainer` is a `trl.DistillationTrainer` whose teacher is the student's own base weights
under a hook, and whose loss looks at the safety tokens alone. Rollout bookkeeping, accelerate,
PEFT, checkpoints and trackers are TRL's and transformers'. The methods overridden here are tested
against the pinned range of TRL.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import broadcast, gather_object
from datasets import IterableDataset
from torch import nn
from torch.utils.data import DataLoader, Sampler
from trl import DistillationConfig, DistillationTrainer
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler, split_tensor_dict

from safesteer.distill import vllm as rollouts
from safesteer.distill.kfac import step_preconditioned
from safesteer.distill.losses import completion_mean, distillation_loss
from safesteer.distill.rollout_metrics import answer_mask, answer_rates
from safesteer.distill.teacher_pass import TEACHER_BATCH_TOKENS, ForwardPasses
from safesteer.errors import SafeSteerError
from safesteer.models.chat import ChatRenderer, pad_left
from safesteer.models.generate import Decoding, end_of_turn_ids, generate
from safesteer.models.layer_cache import start_at_layer
from safesteer.models.lm_head import OutputHead
from safesteer.models.oom import BatchSize
from safesteer.teacher import Teacher


class SafeSteerTrainer(DistillationTrainer):
    """Distils a safety teacher into a student on the safety tokens (paper, section 3.3).

    Args:
        model: the student, a causal language model or a PEFT model around one.
        args: a `trl.DistillationConfig`; batch size x accumulation steps = completions per update.
        train_dataset: rows {"prompt": chat messages, "anchor": bool, "prefill": str}; on anchor
            rows the teacher is the unsteered model, and answers continue their prefill.
            Columns may be missing: no anchors, no prefills.
        chat: renders the prompts; the same renderer as in the stages before.
        teacher: how the base weights become the teacher.
        safety_tokens: ids of S, [K].
        divergence: a name in `safesteer.distill.losses.DIVERGENCES`.
        loss_tokens: the loss looks at S ("safety"), or at the whole vocabulary ("all").
        anchor_tokens: on anchor rows the divergence on S ("safety"), or reverse KL over the whole
            vocabulary ("all"), which also holds back what moves outside S.
        anchor_weight: factor on the loss of anchor rows.
        base_model: frozen copy of the base; needed when all weights are trained, None for LoRA.
        rollout_batch: sequences generated at once; halved where they do not fit into memory.
        teacher_tokens: about how many tokens a pass of the teacher reads.
        opening: (tokens, share): in this share of the windows of updates rollouts are cut after so
            many tokens; the others lie evenly between them, so that whole answers are learned at
            every rate. Those of a model that thinks first are not cut: of their answers the loss
            sees so many tokens.
        updates_per_rollout: rollouts for so many updates, a window, are made at once by the student
            as it is before the first of them, and the teacher reads them at once; 1 is strictly
            on-policy. Resuming has to begin with a window.
        preconditioner: W or V of factors of adapters by their names in `model`, see `kfac`.
    """

    _tag_names = ["trl", "safesteer"]  # noqa: RUF012 - a list in the class that it overrides
    # TRL's loss counts tokens itself and so needs no scaling; ours is the mean over completions
    # (the paper's reduction), and the update's loss the mean over its equal micro-batches.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: Any,
        args: DistillationConfig,
        train_dataset: Any,
        *,
        chat: ChatRenderer,
        teacher: Teacher,
        safety_tokens: list[int],
        divergence: str = "generalized",
        loss_tokens: str = "safety",
        anchor_tokens: str = "safety",
        anchor_weight: float = 1.0,
        base_model: nn.Module | None = None,
        rollout_batch: int = 64,
        teacher_tokens: int = TEACHER_BATCH_TOKENS,
        opening: tuple[int, float] | None = None,
        updates_per_rollout: int = 1,
        preconditioner: Mapping[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        self.chat = chat
        self.teacher = teacher
        self.divergence = divergence
        self.loss_tokens = loss_tokens
        self.anchor_tokens = anchor_tokens
        self.anchor_weight = anchor_weight
        self.base_model = base_model
        self.rollout_batch = BatchSize(rollout_batch)
        self.opening = opening
        self.updates_per_rollout = updates_per_rollout
        self.preconditioner = preconditioner or {}
        self._parts: list[dict[str, Any]] = []  # micro-batches of the window under way
        self._prefills: list[str] = []  # beginnings of the answers that are being written
        if updates_per_rollout > 1 and isinstance(train_dataset, IterableDataset):
            raise ValueError("updates_per_rollout above 1 needs a dataset with a length")
        if args.max_completion_length is None:
            raise ValueError("max_completion_length is not set: rollouts need a cap")
        self.full_length = args.max_completion_length
        self.seconds: dict[str, float] = defaultdict(float)
        trained = [(p, p.data) for p in model.parameters() if p.requires_grad]
        with rollouts.starting(args):
            super().__init__(
                model=model,
                args=args,
                train_dataset=train_dataset,
                processing_class=chat.tokenizer,
                **kwargs,
            )
        if self.use_vllm:
            student = self.accelerator.unwrap_model(self.model)
            rollouts.adapt(self.vllm_generation, end_of_turn_ids(student, chat.tokenizer))
        # TRL rounds the adapters of a quantised base to bfloat16, where the steps of a small
        # learning rate are lost.
        for parameter, data in trained:
            if parameter.dtype != data.dtype:
                parameter.data = data.to(parameter.device)
        if base_model is None and not hasattr(
            self.accelerator.unwrap_model(self.model), "disable_adapter"
        ):
            raise ValueError("training all weights needs base_model, a frozen copy for the teacher")
        if base_model is not None:
            base_model.requires_grad_(False).eval().to(self.accelerator.device)
        self.safety_tokens = torch.tensor(safety_tokens, device=self.accelerator.device)
        self.passes = ForwardPasses(chat, teacher, self.accelerator, teacher_tokens)
        # Checkpointing runs blocks again, with other passes than those that were shared.
        alone = base_model is not None or args.gradient_checkpointing
        student = self.accelerator.unwrap_model(self.model)
        self.shared_blocks = 0 if alone else self.passes.shared_blocks(student)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        made = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if self.preconditioner and not made:
            factors = dict(self.accelerator.unwrap_model(self.model).named_parameters())
            # One process's, lest the last digits of another's drive the copies apart.
            preconditioner = {name: broadcast(each) for name, each in self.preconditioner.items()}
            step_preconditioned(optimizer, factors, preconditioner)
        return optimizer

    # Windows of updates --------------------------------------------------------------------------

    @property
    def _window(self) -> int:
        """Micro-batches whose rollouts are made at once."""
        return self.args.gradient_accumulation_steps * self.updates_per_rollout

    def get_train_dataloader(self) -> DataLoader:
        if self.updates_per_rollout == 1:
            return super().get_train_dataloader()
        return self._get_dataloader(
            dataset=self.train_dataset,  # type: ignore[arg-type]
            description="Training",
            batch_size=self._train_batch_size * self._window,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        """Each window of rows as often as it has micro-batches (TRL's scheme)."""
        rows = self.args.per_device_train_batch_size * self.accelerator.num_processes
        return RepeatSampler(
            data_source=dataset or self.train_dataset,  # type: ignore[arg-type]
            mini_repeat_count=1,
            batch_size=rows * self._window,
            repeat_count=self._window,
            shuffle=bool(self.shuffle_dataset),
            seed=self.args.seed,
        )

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        if self._mode() == "eval":
            return super()._prepare_inputs(generation_batch)
        place = self._step % self._window
        if place == 0 or not self._parts:
            window = self._generate_and_score_completions(generation_batch)
            self._parts = split_tensor_dict(window, self._window)
        inputs = _without_padding(self._parts[place])
        metrics = self._metrics[self._mode()]
        for name, value in answer_rates(self.chat, inputs).items():
            metrics[name].append(value)
        return inputs

    # Rollouts ------------------------------------------------------------------------------------

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict]:
        begun = zip(prompts, self._prefills, strict=True)
        return [self.chat.ids(messages, words) for messages, words in begun], None, {}

    def _rollout_length(self) -> int:
        # Nobody knows how long a model thinks before the opening of its answer.
        if self.opening is None or not self._in_opening or self.chat.thinks:
            return self.full_length
        return min(self.opening[0], self.full_length)

    @property
    def _in_opening(self) -> bool:
        if self.opening is None:
            return False
        whole = 1 - self.opening[1]
        window = self.state.global_step // self.updates_per_rollout
        before, after = (math.floor(n * whole + 1e-6) for n in (window, window + 1))
        return before == after

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.max_completion_length = self._rollout_length()
        with self._timed("rollout"):
            if self.use_vllm:
                self.vllm_generation.max_completion_length = self.max_completion_length
                try:  # TRL sends the weights first, once per window: its step has changed
                    return super()._generate_single_turn(
                        prompt_ids, images, multimodal_fields, *args, **kwargs
                    )
                except OSError as error:  # of the connection to a server
                    raise SafeSteerError(
                        f"the vLLM server went away ({type(error).__name__}); start it again, and"
                        " the same command goes on at the last checkpoint"
                    ) from error
            with unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                generation_kwargs=self.generation_kwargs,
            ) as student:
                training = student.training
                student.eval()  # a rollout is the student's own text, without dropout
                try:
                    return self._sample(student, prompt_ids)
                finally:
                    student.train(training)

    def _sample(self, student: Any, prompt_ids: list[list[int]]) -> list[list[int]]:
        return generate(
            student,
            self.chat.tokenizer,
            prompt_ids,
            Decoding(self._rollout_length(), self.temperature),
            batch_size=self.rollout_batch,
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._prefills = [row.get("prefill") or "" for row in inputs]
        output = super()._generate_and_score_completions(inputs)
        device = output["completion_ids"].device
        anchors = [bool(row.get("anchor", False)) for row in inputs]
        output["anchor"] = torch.tensor(anchors, device=device)
        output["prefilled"] = torch.tensor([bool(words) for words in self._prefills], device=device)
        opening = self.opening[0] if self.opening is not None and self._in_opening else None
        output["answer_mask"] = answer_mask(self.chat, output, opening)
        if self.shared_blocks:
            return output  # the teacher reads with the student, at each update
        # The teacher may read a longer prompt than the student; the completion is the same.
        contexts = [
            self.chat.ids(
                row["prompt"] if anchor else self.teacher.messages(row["prompt"], words), words
            )
            for row, anchor, words in zip(inputs, anchors, self._prefills, strict=True)
        ]
        ids, mask = pad_left(contexts, self.chat.tokenizer.pad_token_id, device)
        student = self.accelerator.unwrap_model(self.model)
        base = student if self.base_model is None else self.base_model
        with self._timed("teacher"):
            # Through the wrapper, as TRL does for the loss: it holds a sharded model's weights.
            output["teacher_hidden"] = self._forward_redirection(
                self.model_wrapped, student, self.passes.teach, base, ids, mask, output
            )
        return output

    # Loss ----------------------------------------------------------------------------------------

    def _compute_loss(self, unwrapped_student, inputs, num_items_in_batch):  # type: ignore[no-untyped-def]
        answers = inputs["answer_mask"]
        lengths = answers.sum(-1)
        begin: AbstractContextManager[None] = nullcontext()
        if self.shared_blocks:
            with self._timed("teacher"):
                teacher_hidden, entered = self.passes.teach_from(
                    unwrapped_student, self.shared_blocks, inputs
                )
            begin = start_at_layer(unwrapped_student, self.shared_blocks, entered)
        else:
            teacher_hidden = inputs["teacher_hidden"]
        with begin:
            hidden = self.passes.read(
                unwrapped_student, inputs["prompt_ids"], inputs["prompt_mask"], inputs
            )
        anchor = torch.repeat_interleave(inputs["anchor"], lengths)  # [N]
        per_position, metrics = self._position_losses(
            unwrapped_student, hidden[answers], teacher_hidden[answers], anchor
        )
        weighted = torch.where(anchor, self.anchor_weight * per_position, per_position)
        loss = completion_mean(weighted, lengths)
        self._log_masses(metrics, anchor)
        return loss, metrics["entropy"].sum(), lengths.sum()

    def _position_losses(self, student, hidden, teacher_hidden, anchor):  # type: ignore[no-untyped-def]
        """Loss [N] and metrics at every position: S where the teacher teaches, anchors as set."""
        if not len(hidden):  # nobody came to an answer
            nothing = hidden.sum(-1)
            names = ("mass_student", "mass_teacher", "entropy")
            return nothing, dict.fromkeys(names, nothing.detach())
        head = OutputHead.of(student)
        base_head = head if self.base_model is None else OutputHead.of(self.base_model)
        # Over the whole vocabulary `paper` is KL(student || base).
        held = "paper" if self.anchor_tokens == "all" else self.divergence
        groups = [
            (
                self.divergence,
                self.loss_tokens,
                base_head.with_temperature(self.teacher.temperature),
            ),
            (held, self.anchor_tokens, base_head),
        ]
        places = [where.nonzero().flatten() for where in (~anchor, anchor)]
        parts = [
            distillation_loss(
                divergence,
                head,
                hidden[where],
                teacher_hidden[where],
                self.safety_tokens,
                teacher_head,
                loss_tokens=loss_tokens,
            )
            for (divergence, loss_tokens, teacher_head), where in zip(groups, places, strict=True)
            if len(where)
        ]
        back = torch.cat(places).argsort()
        loss = torch.cat([part for part, _ in parts])[back]
        names = parts[0][1]
        return loss, {name: torch.cat([m[name] for _, m in parts])[back] for name in names}

    def _log_masses(self, metrics, anchor) -> None:  # type: ignore[no-untyped-def]
        harmful = ~anchor
        mode = self._mode()
        for name in ("mass_student", "mass_teacher"):
            if harmful.any():
                self._metrics[mode][name].append(metrics[name][harmful].mean().item())

    # Book-keeping --------------------------------------------------------------------------------

    def _mode(self) -> str:
        return "train" if self.model is not None and self.model.training else "eval"

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def training_step(self, model, inputs, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        with self._timed("step"):
            return super().training_step(model, inputs, num_items_in_batch)

    def log(self, logs, start_time=None):  # type: ignore[no-untyped-def]
        if self.accelerator.num_processes > 1:
            mine = self._metrics[self._mode()]
            everyone = gather_object([{name: list(values) for name, values in mine.items()}])
            for name in sorted({name for theirs in everyone for name in theirs}):
                mine[name] = [value for theirs in everyone for value in theirs.get(name, [])]
        super().log(logs, start_time)

    def _send_telemetry(self) -> None:
        """TRL reports every run to the hub; nothing is sent from here."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The run's own card takes the place of TRL's."""


def _without_padding(batch: dict[str, Any]) -> dict[str, Any]:
    """A part of a window, no wider than its own longest prompt and completion."""
    before = int(batch["prompt_mask"].sum(-1).max())
    after = int(batch["completion_mask"].sum(-1).max())
    return {
        **batch,
        **{key: batch[key][:, -before:] for key in ("prompt_ids", "prompt_mask")},
        **{
            key: batch[key][:, :after]
            for key in ("completion_ids", "completion_mask", "answer_mask", "teacher_hidden")
            if key in batch
        },
    }
