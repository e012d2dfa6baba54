"""Settings: every key with its meaning, its default and its limits.

One class per section of the YAML file; keys that few runs change are in `advanced`, and
rules between keys in `rules`. The defaults are those of the recipe `default`, whose file
shows every main key. "Published" marks the values of the paper (arXiv 2606.02530, section 4).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from safesteer.config.advanced import (
    Address,
    DirectionAdvanced,
    EndpointAdvanced,
    EvaluateAdvanced,
    ModelAdvanced,
    Section,
    Sentence,
    TeacherAdvanced,
    TokenAdvanced,
    TrainAdvanced,
    VariableName,
)
from safesteer.config.rules import check_rules

Divergence = Literal["paper", "generalized", "tail", "renormalized", "forward", "tail_forward"]
DirectionSource = Literal["auto", "harmful-harmless", "refuse-comply"]
TeacherContext = Literal["none", "system-prompt", "demonstrations", "refusals"]
TokenMethod = Literal["vote", "mass"]
LossTokens = Literal["safety", "all"]
Rollouts = Literal["transformers", "vllm"]
WrongRefusals = Literal["keep", "repair"]


class ModelSettings(Section):
    """The model that is aligned, and how it is loaded."""

    id: str = "smollm2-135m"
    """Align this model: a hub id, a folder, a .gguf file, or smollm2-135m, which is built in."""

    revision: str | None = None
    """Load this branch, tag or commit of a hub model; null loads the newest."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Load the weights in this type; auto measures which one is fast here. Published: bfloat16."""

    device: str = "auto"
    """Run on this device: auto, cpu, cuda, or one GPU such as cuda:1."""

    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Quantize the linear layers of the base with bitsandbytes. For LoRA adapters."""

    chat_template: str | None = None
    """Use this Jinja file as chat template, for a tokenizer that has none."""

    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Pass these arguments to the chat template, such as {enable_thinking: false}."""

    trust_remote_code: bool = False
    """Allow Python code that comes with the model to run."""

    advanced: ModelAdvanced = Field(default_factory=ModelAdvanced)

    @model_validator(mode="after")
    def _keeps_rules(self) -> ModelSettings:
        check_rules(model=self)
        return self


class PromptSettings(Section):
    """The three sets of prompts: files, hub data sets, or SafeSteer's own."""

    harmful: str = "builtin"
    """Refuse these prompts: a file, a hub data set or builtin."""

    harmless: str = "builtin"
    """Keep answering these prompts: a file, a hub data set or builtin."""

    borderline: str = "builtin"
    """Keep answering these harmless prompts that sound alarming: a file, a hub data set, builtin
    or builtin:borderline-large (1,300 more to train on)."""

    column: str | None = None
    """Read prompts from the column of this name, or one per set:
    harmful=COLUMN,harmless=COLUMN; null finds it."""


class DirectionSettings(Section):
    """The search for the refusal direction."""

    source: DirectionSource = "auto"
    """Find the direction from harmful and harmless prompts, or from refusing and complying
    answers; auto tries the first, then the second. Published: harmful-harmless."""

    advanced: DirectionAdvanced = Field(default_factory=DirectionAdvanced)


class TeacherSettings(Section):
    """The safety teacher: the model itself, steered, with something to read first, or both."""

    strength: float = Field(0.4, ge=0)
    """Multiply the direction's own coefficient by this while the teacher runs; 0 turns steering
    off. Published: 1."""

    temperature: float = Field(0.5, ge=1e-3)
    """Divide the teacher's logits by this; below 1 it is more certain, so that sampled answers
    refuse too. Published: 1."""

    context: TeacherContext = "refusals"
    """Let the teacher read a system prompt, demonstrations (answered and refused requests) or
    refusals before the prompt. Published: none."""

    demonstrations: int = Field(2, ge=1, le=16)
    """Show the teacher this many requests with answers, if context is demonstrations or
    refusals."""

    advanced: TeacherAdvanced = Field(default_factory=TeacherAdvanced)

    @property
    def steers(self) -> bool:
        """Whether the direction is added while the teacher runs."""
        return self.strength > 0

    @model_validator(mode="after")
    def _keeps_rules(self) -> TeacherSettings:
        check_rules(teacher=self)
        return self


class TokenSettings(Section):
    """The choice of the safety tokens S."""

    method: TokenMethod = "mass"
    """Choose tokens by vote, or by mass: the sum of |p_teacher - p_base|. Published: vote."""

    num_tokens: int = Field(200, ge=1)
    """Choose this many safety tokens (K). Published: 50."""

    prompts: Literal["harmless", "harmful"] = "harmful"
    """Compare teacher and model on validation prompts of this set. Published: harmless."""

    num_generations: int = Field(2, ge=1)
    """Sample this many continuations per prompt from the teacher (N). Published: 8."""

    horizon: int = Field(20, ge=1)
    """Compare the models on this many tokens of each continuation (H). Published: 7 for Qwen, 5
    for Llama."""

    advanced: TokenAdvanced = Field(default_factory=TokenAdvanced)


class LoraSettings(Section):
    """The adapters, read if `train.method` is lora."""

    r: int = Field(16, ge=1)
    """Give adapters this rank."""

    alpha: int = Field(32, ge=1)
    """Scale adapters by alpha / r."""

    target_modules: Sentence | Annotated[list[Sentence], Field(min_length=1)] = "all-linear"
    """Adapt these modules, named as in peft.LoraConfig."""

    first_layer: Annotated[int, Field(ge=0)] | Literal["steered"] = 0
    """Adapt no layer below this one, which saves their backward pass. With steered it is the layer
    of the direction, below which teacher and student run as one."""

    extrapolation: float = Field(0.25, ge=0, le=1)
    """Scale the trained adapter by 1 + this when training ends (ExPO, arXiv 2404.16792).
    Published: 0."""

    kfac_damping: float | None = Field(None, gt=0)
    """Precondition the steps with K-FAC statistics of anchor prompts, so that harmless text
    changes least; null takes plain steps. The value is the damping, as a share of the mean
    variance: smaller is stronger. Published: null."""


class TrainSettings(Section):
    """The distillation of the teacher into the model."""

    method: Literal["lora", "full"] = "lora"
    """Train LoRA adapters, or all weights (full). Published: full."""

    divergence: Divergence = "tail_forward"
    """Use this divergence between student and teacher as loss. Published: paper."""

    loss_tokens: LossTokens = "safety"
    """Compute the loss on the safety tokens, or on all tokens: then on the whole vocabulary, as
    reverse KL, forward KL (forward) or their sum (tail_forward). Published: safety."""

    num_prompts: int | None = Field(360, ge=1)
    """Train on the first this many harmful training prompts; null takes all. Published: 100."""

    max_steps: int | None = Field(160, ge=1)
    """Stop after this many optimizer steps; null is one epoch. Published: 25 steps, which is one
    epoch."""

    prompts_per_step: int = Field(16, ge=1)
    """Use this many different prompts in one step. Published: 4."""

    num_generations: int = Field(1, ge=1)
    """Sample this many completions per prompt from the student (M). Published: 8."""

    anchor_share: float = Field(0.75, ge=0, lt=1)
    """Make this share of the prompts of a step anchors: harmless prompts, on which the base is the
    teacher. Published: 0."""

    anchor_weight: float = Field(4.0, gt=0)
    """Multiply the loss of anchors by this; the mean stays over all completions."""

    anchor_tokens: LossTokens = "all"
    """Compute the loss of anchors on the safety tokens, or on all tokens: then it is KL(student ||
    base)."""

    wrong_refusals: WrongRefusals = "keep"
    """What happens to harmless prompts that the base wrongly refuses: keep holds the model to the
    base there too, repair teaches it to answer them. Published: keep."""

    prefill_share: float = Field(0.25, ge=0, le=1)
    """Prefill the answers to this share of the prompts of a step with a compliant text, so that
    the student learns to turn back. Use 0 for a model that thinks first. Published: 0."""

    learning_rate: float = Field(5e-4, gt=0)
    """Let AdamW take steps of this size at most, after a linear warmup and before a cosine decay.
    Published: 1e-5 for Qwen, 1e-6 for Llama, for all weights."""

    max_completion_length: int = Field(64, ge=1)
    """Cut rollouts after this many tokens. Published: 512."""

    short_rollout_length: int | None = Field(5, ge=1)
    """Cut the rollouts of most steps after this many tokens, since the first words decide whether
    an answer refuses; null never does. Published: null."""

    steps_per_generation: int = Field(1, ge=1)
    """Generate the rollouts of this many steps at once, which is faster and slightly off-policy.
    Published: 1."""

    per_device_train_batch_size: int | None = Field(None, ge=1)
    """Pass this many completions through the model at once, on each device; null passes those of a
    whole step. Gradients add up to the same step."""

    gradient_checkpointing: bool = False
    """Save memory by computing activations again in the backward pass."""

    rollouts: Rollouts = "transformers"
    """Generate rollouts with transformers, or with vllm, which is faster and needs CUDA."""

    lora: LoraSettings = Field(default_factory=LoraSettings)

    advanced: TrainAdvanced = Field(default_factory=TrainAdvanced)

    @model_validator(mode="after")
    def _keeps_rules(self) -> TrainSettings:
        check_rules(train=self)
        return self

    @property
    def anchors_per_step(self) -> int:
        """Anchors among the prompts of one step."""
        return round(self.anchor_share * self.prompts_per_step)

    @property
    def completions_per_step(self) -> int:
        """Completions of the student in one optimizer step."""
        return self.prompts_per_step * self.num_generations


class EndpointSettings(Section):
    """An OpenAI-compatible server that judges answers; asked only when a judge names it."""

    base_url: Address | None = None
    """Ask the server at this address, such as http://localhost:8000/v1."""

    model: str | None = None
    """Ask the model with this name on the server."""

    api_key_env: VariableName = "OPENAI_API_KEY"
    """Read the key from this environment variable; the key is never written."""

    advanced: EndpointAdvanced = Field(default_factory=EndpointAdvanced)


class EvaluateSettings(Section):
    """The evaluation of base, teacher and aligned model."""

    max_new_tokens: int = Field(64, ge=1)
    """Cut judged answers after this many tokens. Published: 256."""

    limit: int | None = Field(None, ge=1)
    """Judge at most this many prompts per set; null judges all."""

    drift_prompts: int = Field(64, ge=1)
    """Measure token agreement and KL to the base on this many harmless prompts."""

    benchmarks: list[str] = Field(default_factory=list)
    """Measure these benchmarks besides the own prompt sets; `safesteer benchmarks` lists them."""

    judges: list[str] = Field(default_factory=lambda: ["offline-refusal"], min_length=1)
    """Let these judges decide what is a refusal; the first one's figures lead."""

    data_dir: str | None = None
    """Read the files of benchmarks from this folder."""

    allow_code_execution: bool = False
    """Allow code that the model wrote to run, which HumanEval needs."""

    endpoint: EndpointSettings = Field(default_factory=EndpointSettings)

    advanced: EvaluateAdvanced = Field(default_factory=EvaluateAdvanced)


class Settings(Section):
    """All settings of a run; `config.yaml` in a run holds them."""

    model: ModelSettings = Field(default_factory=ModelSettings)

    prompts: PromptSettings = Field(default_factory=PromptSettings)

    direction: DirectionSettings = Field(default_factory=DirectionSettings)

    teacher: TeacherSettings = Field(default_factory=TeacherSettings)

    tokens: TokenSettings = Field(default_factory=TokenSettings)

    train: TrainSettings = Field(default_factory=TrainSettings)

    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)

    seed: int = Field(0, ge=0, lt=2**32)
    """Seed every random choice with this number."""

    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    """Log the training to these trackers; wandb sends it to its server."""

    @model_validator(mode="after")
    def _keeps_rules(self) -> Settings:
        check_rules(**dict(self))
        return self
