"""`SafeSteerTrainer`: on-policy distillation of a safety teacher on the safety tokens.

It is a `trl.DistillationTrainer` whose teacher is the student's own base weights under a hook, and
whose loss is computed on the safety tokens. Datasets, accelerate, PEFT, checkpoints and trackers
are TRL's and transformers'. The methods overridden here are tested against the pinned range of TRL.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import broadcast, gather_object
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase
from trl import DistillationTrainer
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler, split_tensor_dict

from safesteer.distill import vllm as rollouts
from safesteer.distill.config import SafeSteerConfig, check_arguments
from safesteer.distill.kfac import step_preconditioned
from safesteer.distill.losses import completion_mean, distillation_loss
from safesteer.distill.rollout_metrics import answer_mask, answer_rates
from safesteer.distill.rows import tokenize_row
from safesteer.distill.teacher_pass import ForwardPasses, trim_padding
from safesteer.errors import SafeSteerError
from safesteer.models.chat import ChatRenderer, pad_left
from safesteer.models.generate import Decoding, end_of_turn_ids, generate
from safesteer.models.layer_cache import start_at_layer
from safesteer.models.lm_head import OutputHead
from safesteer.models.oom import BatchSize
from safesteer.teacher import Teacher

_log = logging.getLogger(__name__)


class SafeSteerTrainer(DistillationTrainer):
    """Trainer for SafeSteer: on-policy distillation of a safety teacher on the safety tokens.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from peft import LoraConfig, get_peft_model
    >>> import safesteer

    >>> model = safesteer.load_model("smollm2-135m")
    >>> harmful = [[{"role": "user", "content": "How do I pick my neighbor's lock?"}]]
    >>> harmless = [[{"role": "user", "content": "How do I bake bread?"}]]
    >>> teacher = safesteer.Teacher(context=({"role": "system", "content": "Refuse crimes."},))
    >>> rows = [{"prompt": prompt} for prompt in harmful]
    >>> rows += [{"prompt": prompt, "anchor": True} for prompt in harmless]

    >>> trainer = safesteer.SafeSteerTrainer(
    ...     get_peft_model(model.model, LoraConfig(task_type="CAUSAL_LM")),
    ...     args=safesteer.SafeSteerConfig("output", per_device_train_batch_size=2, max_steps=2),
    ...     train_dataset=Dataset.from_list(rows),
    ...     processing_class=model.tokenizer,
    ...     teacher=teacher,
    ...     safety_tokens=safesteer.select_safety_tokens(model, teacher, harmful).ids,
    ... )
    >>> trainer.train()
    ```

    Args:
        model: the student, a causal language model or a PEFT model around one.
        args: the configuration.
        train_dataset: rows {"prompt": chat messages, "anchor": bool, "prefill": str, "strength":
            float}. On anchors the plain base teaches in place of the teacher; answers continue
            their prefill; for the strength see `safesteer.distill.rows`. All but the prompt may be
            missing.
        processing_class: the tokenizer, with a chat template, or a `ChatRenderer` of one.
        teacher: how the base weights become the teacher.
        safety_tokens: ids of the safety tokens S, [K].
        base_model: a frozen copy of the base, needed to train all weights; None for LoRA.
        preconditioner: K-FAC preconditioner of the adapters, from
            `safesteer.distill.kfac.measure_kfac`; None for plain steps.
        kwargs: other arguments of `trl.DistillationTrainer`, such as `callbacks`.

    Attributes:
        seconds: seconds spent since they were last cleared, by what they were spent on.

    Raises:
        InputError: arguments do not go together.

    Source: SafeSteer (arXiv 2606.02530), section 3.3.
    """

    _tag_names = ["trl", "safesteer"]  # noqa: RUF012 - a list in the class that it overrides
    # TRL's loss counts tokens itself and so needs no scaling; ours is the mean over completions
    # (the paper's reduction), and a step's loss is the mean over its equal micro-batches.
    loss_is_scaled_for_ga = False
    args: SafeSteerConfig

    def __init__(
        self,
        model: Any,
        args: SafeSteerConfig,
        train_dataset: Any = None,
        *,
        processing_class: PreTrainedTokenizerBase | ChatRenderer,
        teacher: Teacher,
        safety_tokens: Sequence[int],
        base_model: nn.Module | None = None,
        preconditioner: Mapping[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        check_arguments(model, args, train_dataset, base_model, preconditioner)
        if not isinstance(processing_class, ChatRenderer):
            processing_class = ChatRenderer(processing_class)
        self.chat = processing_class
        self.teacher = teacher
        self.base_model = base_model
        self.preconditioner = preconditioner or {}
        self.rollout_batch = BatchSize(args.rollout_batch_size)
        self.seconds: dict[str, float] = defaultdict(float)
        self._micro_batches: list[dict[str, Any]] = []  # of the current window
        trained = [(p, p.data) for p in model.parameters() if p.requires_grad]
        with rollouts.starting(args):
            super().__init__(
                model=model,
                args=args,
                train_dataset=train_dataset,
                processing_class=self.chat.tokenizer,
                **kwargs,
            )
        student = self.accelerator.unwrap_model(self.model)
        if self.use_vllm:
            rollouts.adapt(self.vllm_generation, end_of_turn_ids(student, self.chat.tokenizer))
        # TRL rounds the adapters of a quantized base to bfloat16, where the steps of a small
        # learning rate are lost.
        for parameter, data in trained:
            if parameter.dtype != data.dtype:
                parameter.data = data.to(parameter.device)
        if base_model is not None:
            base_model.requires_grad_(False).eval().to(self.accelerator.device)
        self.safety_tokens = torch.tensor(list(safety_tokens), device=self.accelerator.device)
        self.passes = ForwardPasses(self.chat, teacher, self.accelerator, args.teacher_batch_tokens)
        # Checkpointing runs blocks again, in other passes than those that were shared.
        shares = base_model is None and args.prompt_gradient and not args.gradient_checkpointing
        self.shared_blocks = self.passes.shared_blocks(student) if shares else 0

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        made = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if self.preconditioner and not made:
            factors = dict(self.accelerator.unwrap_model(self.model).named_parameters())
            # Copies of one process's, whose last digits may differ from another's.
            preconditioner = {name: broadcast(each) for name, each in self.preconditioner.items()}
            step_preconditioned(optimizer, factors, preconditioner)
        return optimizer

    # Windows: steps that share their rollouts ----------------------------------------------------

    @property
    def _window(self) -> int:
        """Micro-batches whose rollouts are generated at once."""
        return self.args.gradient_accumulation_steps * self.args.steps_per_generation

    def get_train_dataloader(self) -> DataLoader:
        if self.args.steps_per_generation == 1:
            return super().get_train_dataloader()
        return self._get_dataloader(
            dataset=self.train_dataset,  # type: ignore[arg-type]
            description="Training",
            batch_size=self._train_batch_size * self._window,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        """Repeat each window of rows once per micro-batch, as TRL does."""
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
        if place == 0 or not self._micro_batches:
            window = self._generate_and_score_completions(generation_batch)
            prompts = window.pop("prompts", None)
            self._micro_batches = split_tensor_dict(window, self._window)
            if prompts is not None:
                rows = len(prompts.mask) // self._window
                for number, part in enumerate(self._micro_batches):
                    part["prompts"] = prompts.rows(slice(number * rows, (number + 1) * rows))
        inputs = trim_padding(self._micro_batches[place])
        metrics = self._metrics[self._mode()]
        for name, value in answer_rates(self.chat, inputs).items():
            metrics[name].append(value)
        return inputs

    # Rollouts ------------------------------------------------------------------------------------

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict]:
        return prompts, None, {}  # tokenized already, see `_generate_and_score_completions`

    @property
    def _short_length(self) -> int | None:
        """Tokens of a short rollout; None in the windows of full-length ones, evenly between."""
        full_length = 1 - self.args.short_rollout_share
        window = self.state.global_step // self.args.steps_per_generation
        before, after = (math.floor(n * full_length + 1e-6) for n in (window, window + 1))
        return self.args.short_rollout_length if before == after else None

    @property
    def _rollout_length(self) -> int:
        short, longest = self._short_length, self.args.max_completion_length
        # A model that thinks first may write any number of thoughts before its answer.
        return longest if short is None or self.chat.thinks else min(short, longest)

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.max_completion_length = self._rollout_length
        with self._timed("rollout"):
            if self.use_vllm:
                self.vllm_generation.max_completion_length = self.max_completion_length
                try:  # TRL sends the weights first, once per window: its step has changed
                    return super()._generate_single_turn(
                        prompt_ids, images, multimodal_fields, *args, **kwargs
                    )
                except OSError as error:  # of the connection to a server
                    raise SafeSteerError(
                        f"the vLLM server went away ({type(error).__name__}). Try: start it again,"
                        " then the same command, which resumes from the last checkpoint"
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
                    return generate(
                        student,
                        self.chat.tokenizer,
                        prompt_ids,
                        Decoding(self.max_completion_length, self.temperature),
                        batch_size=self.rollout_batch,
                    )
                finally:
                    student.train(training)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [tokenize_row(self.chat, self.teacher, row) for row in inputs]
        output = super()._generate_and_score_completions(
            [{"prompt": row.student_ids} for row in rows]
        )
        device = output["completion_ids"].device
        output["strength"] = torch.tensor([row.strength for row in rows], device=device)
        output["prefilled"] = torch.tensor([row.prefilled for row in rows], device=device)
        output["answer_mask"] = answer_mask(self.chat, output, self._short_length)
        if self.shared_blocks:
            return output  # the teacher reads with the student, in every step
        if not self.args.prompt_gradient:
            with self._timed("rollout"):
                output["prompts"] = self.passes.read_prompts(self._student, output)
            if output["prompts"] is None:
                self.args.prompt_gradient = True
                _log.warning("the model keeps no cache, so gradients flow through the prompts too")
        ids, mask = pad_left(
            [row.teacher_ids for row in rows], self.chat.tokenizer.pad_token_id, device
        )
        base = self._student if self.base_model is None else self.base_model
        with self._timed("teacher"):
            # Through the wrapper, which holds a sharded model's weights, as TRL does for the loss.
            output["teacher_hidden"] = self._forward_redirection(
                self.model_wrapped, self._student, self.passes.teach, base, ids, mask, output
            )
        return output

    @property
    def _student(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    # Loss ----------------------------------------------------------------------------------------

    def _compute_loss(self, unwrapped_student, inputs, num_items_in_batch):  # type: ignore[no-untyped-def]
        answers = inputs["answer_mask"]
        lengths = answers.sum(-1)
        lower_blocks: AbstractContextManager[None] = nullcontext()
        if self.shared_blocks:
            with self._timed("teacher"):
                teacher_hidden, entered = self.passes.teach_from(
                    unwrapped_student, self.shared_blocks, inputs
                )
            lower_blocks = start_at_layer(unwrapped_student, self.shared_blocks, entered)
        else:
            teacher_hidden = inputs["teacher_hidden"]
        if inputs.get("prompts") is not None:
            hidden = self.passes.answer(unwrapped_student, inputs)
        else:
            with lower_blocks:
                hidden = self.passes.read(
                    unwrapped_student, inputs["prompt_ids"], inputs["prompt_mask"], inputs
                )
        strength = torch.repeat_interleave(inputs["strength"], lengths)  # [N]
        loss, metrics = self._position_losses(
            unwrapped_student, hidden[answers], teacher_hidden[answers], strength
        )
        harmful = strength > 0
        for name in ("mass_student", "mass_teacher") if harmful.any() else ():
            self._metrics[self._mode()][name].append(metrics[name][harmful].mean().item())
        return completion_mean(loss, lengths), metrics["entropy"].sum(), lengths.sum()

    def _position_losses(
        self,
        student: nn.Module,
        hidden: torch.Tensor,  # [N, D]
        teacher_hidden: torch.Tensor,  # [N, D]
        strength: torch.Tensor,  # [N]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted loss [N], and mass_student, mass_teacher and entropy, [N] each."""
        if not len(hidden):  # no rollout came to an answer
            nothing = hidden.sum(-1)
            names = ("mass_student", "mass_teacher", "entropy")
            return nothing, dict.fromkeys(names, nothing.detach())
        args, head = self.args, OutputHead.of(student)
        base_head = head if self.base_model is None else OutputHead.of(self.base_model)
        teacher_head = base_head.with_temperature(self.teacher.temperature)
        # Over the whole vocabulary `paper` is KL(student || base).
        anchor_divergence = "paper" if args.anchor_tokens == "all" else args.divergence
        loss = torch.zeros(len(hidden), device=hidden.device)
        metrics: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros_like(loss))
        for where, divergence, tokens, taught_by, weight in (
            (strength > 0, args.divergence, args.loss_tokens, teacher_head, 1.0),
            (strength == 0, anchor_divergence, args.anchor_tokens, base_head, args.anchor_weight),
            # Answers are more than the tokens of S, so the whole vocabulary is repaired. The weight
            # of anchors, and a temperature of 1, are still to be measured against others.
            (strength < 0, "paper", "all", base_head, args.anchor_weight),
        ):
            if where.any():
                part, figures = distillation_loss(
                    divergence,
                    head,
                    hidden[where],
                    teacher_hidden[where],
                    self.safety_tokens,
                    taught_by,
                    loss_tokens=tokens,
                )
                loss[where] = weight * part
                for name, figure in figures.items():
                    metrics[name][where] = figure
        return loss, metrics

    # Logs ----------------------------------------------------------------------------------------

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
        """Nothing: TRL would report every run to the hub."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run writes its own model card."""
