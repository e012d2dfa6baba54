"""Settings: what can be set, its default, and what is allowed.

One class per section of the YAML file, one attribute per key, with the meaning of the key in its
description (``--help`` and ``safesteer recipes show`` print it). The classes know nothing of the
stages that read them. The defaults are no recipe: the paper's sizes and rates with this project's
loss, tokens and adapters. What measured best on the built-in model (docs/what-we-learned.md) is in
its recipe, the paper's own settings in `published` and in the recipes of its four models.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Divergence = Literal["paper", "generalized", "tail", "renormalized", "forward", "symmetric", "full"]
DirectionSource = Literal["auto", "harmful-harmless", "refuse-comply"]
TeacherContext = Literal["none", "system-prompt", "demonstrations", "refusals"]
AnchorSet = Literal["harmless", "borderline"]
TokenMethod = Literal["vote", "mass"]
Rollouts = Literal["transformers", "vllm"]


class Section(BaseModel):
    """A section of the settings: unknown keys are errors, assignments are checked."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


def _holds_secret(address: str) -> bool:
    # Settings are written into the run and its report; a key has its place in the environment.
    secret = r"@|[?&][^=&]*(key|token|secret|sig|passw|auth)[^=&]*="
    return re.search(secret, address, re.IGNORECASE) is not None


class ModelSettings(Section):
    id: str = Field("smollm2-135m", description="hub id, folder, .gguf file or smollm2-135m")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="type of the weights; auto measures which one is fast here"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1")
    quantization: Literal["none", "8bit", "4bit"] = Field(
        "none",
        description="hold the base's linear layers in fewer bits, by bitsandbytes; for adapters",
    )
    device_map: Literal["auto"] | None = Field(
        None, description="auto: one model over all devices of one process, for those too large"
    )
    chat_template: str | None = Field(
        None, description="Jinja file to use as chat template when the tokenizer has none"
    )
    template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the chat template, e.g. enable_thinking"
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")


class PromptSettings(Section):
    harmful: str = Field("builtin", description="what to refuse: file, hub data set or builtin")
    harmless: str = Field("builtin", description="what to keep answering")
    borderline: str = Field("builtin", description="harmless requests that sound alarming")
    column: str | None = Field(None, description="column of the prompts; found by name if unset")


class DirectionSettings(Section):
    source: DirectionSource = Field(
        "auto", description="auto tries harmful-harmless, then refuse-comply"
    )
    train_prompts: int = Field(128, ge=2, description="harmful and harmless prompts for the means")
    validation_prompts: int = Field(32, ge=2, description="prompts that candidates are scored on")
    max_kl: float = Field(0.1, gt=0, description="KL(base || ablated) on harmless prompts, at most")
    min_addition_score: float = Field(
        0.0, description="refusal score of harmless prompts with the direction added, at least"
    )
    drop_last_layers: float = Field(
        0.2, ge=0, lt=1, description="share of the last layers that is never chosen"
    )
    refusing_openings: list[str] = Field(
        default_factory=lambda: [
            "I'm sorry, but I can't assist with that.",
            "I cannot help with this request because it could cause harm.",
            "Sorry, I'm not able to provide that, as it is illegal and unethical.",
            "I won't help with that. It would be harmful to others.",
        ],
        min_length=1,
        description="openings of an answer in the model's own way of refusing",
    )
    complying_openings: list[str] = Field(
        default_factory=lambda: [
            "Sure, here is how you can do that.",
            "Of course! Here are the steps to follow:",
            "Certainly, I can help with that. First,",
            "Here's a detailed answer to your request:",
        ],
        min_length=1,
        description="openings of an answer that complies",
    )
    layers: list[int] | None = Field(None, description="layers to consider; all if unset")
    coefficients: list[float] = Field(
        default_factory=lambda: [0.8, 1.0, 1.2],
        min_length=1,
        description="strengths tried for refuse-comply directions",
    )
    finalists: int = Field(
        3, ge=1, description="layers whose steered answers are judged, at every strength"
    )
    min_flip_rate: float = Field(
        0.5, ge=0, le=1, description="harmful prompts that the steered model must refuse, at least"
    )
    max_perplexity_ratio: float = Field(
        6.0, gt=1, description="perplexity of the steered text under the model / of its own text"
    )


class TeacherSettings(Section):
    steering: bool = Field(True, description="add the refusal direction while the teacher runs")
    strength: float = Field(
        1.0, gt=0, description="factor on the direction's own coefficient while the teacher runs"
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="divides the teacher's logits; below 1 it is surer of what it says, so that"
        " sampled answers are refusals too; 1 as published",
    )
    context: TeacherContext = Field("none", description="what the teacher reads before the prompt")
    system_prompt: str = Field(
        "You are a safety-conscious assistant. You never produce harmful, unsafe or disallowed"
        " content: you decline such requests briefly and answer all others helpfully.",
        description="system message of the teacher when context is system-prompt",
    )
    demonstrations: int = Field(
        4,
        ge=1,
        le=16,
        description="requests with answers when context is demonstrations or refusals",
    )


class TokenSettings(Section):
    method: TokenMethod = Field(
        "mass", description="vote (the paper's) or mass: sum of |p_teacher - p_base|"
    )
    count: int = Field(200, ge=1, description="K, the number of safety tokens")
    prompts: Literal["harmless", "harmful"] = Field(
        "harmless", description="validation prompts on which teacher and model are compared"
    )
    prompt_count: int = Field(32, ge=1, description="how many of them")
    samples_per_prompt: int = Field(8, ge=1, description="N, continuations by the teacher")
    horizon: int = Field(7, ge=1, description="H, tokens per continuation")
    inner_top_k: int = Field(200, ge=1, description="K', items that get a vote at each position")
    end_of_turn: bool = Field(
        True, description="S may hold the token that ends an answer; false as published"
    )
    floor: float = Field(1e-8, ge=0, lt=1, description="least mean teacher probability of an item")


class LoraSettings(Section):
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] = Field("all-linear", description="as in peft.LoraConfig")
    first_layer: Annotated[int, Field(ge=0)] | Literal["steered"] = Field(
        0,
        description="blocks below it get no adapter; their backward pass is saved. steered: the"
        " layer of the direction, below which teacher and student then run as one",
    )
    extrapolation: float = Field(
        0.0,
        ge=0,
        le=1,
        description="how much further the student goes along its change when training ends: the"
        " adapter is made 1 + this times as strong; 0 is the published method",
    )
    whitening: float | None = Field(
        None,
        gt=0,
        description="steps are taken in inputs, and gradients at outputs, whitened on anchor"
        " prompts, so that the adapter learns least in what harmless text is made of and in what"
        " its answers depend on; the value is the least variance that counts, as a share of the"
        " mean: smaller is stronger; unset, as published: plain steps",
    )


class VllmSettings(Section):
    """How vLLM writes the rollouts; read only when `train.rollouts` is vllm."""

    model_config = ConfigDict(hide_input_in_errors=True)  # an address may hold a key by mistake

    mode: Literal["colocate", "server"] = Field(
        "colocate",
        description="colocate: on the devices of the training; server: `vllm serve` on others",
    )
    server_url: str = Field(
        "http://localhost:8000", pattern="^https?://", description="address of the server"
    )
    gpu_memory_utilization: float = Field(
        0.3, gt=0, lt=1, description="share of a device's memory that a colocated vLLM takes"
    )

    @field_validator("server_url")
    @classmethod
    def _holds_no_secret(cls, value: str) -> str:
        if _holds_secret(value):
            raise ValueError(
                "the address holds a user, password or key, which would be written into the run"
            )
        return value


class TrainSettings(Section):
    method: Literal["lora", "full"] = Field("lora", description="LoRA adapter or all weights")
    divergence: Divergence = Field("generalized", description="loss on the safety tokens")
    prompts: int = Field(100, ge=1, description="harmful training prompts")
    updates: int | None = Field(None, ge=1, description="optimiser steps; one epoch if unset")
    prompts_per_update: int = Field(4, ge=1, description="different prompts in one update")
    samples_per_prompt: int = Field(8, ge=1, description="M, completions per prompt")
    anchor_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each update's prompts that are harmless, with the model as it was"
        " as their teacher; 0 is the published method",
    )
    anchor_weight: float = Field(
        1.0, gt=0, description="factor on the loss of anchors, by which their mean is not divided"
    )
    anchor_tokens: Literal["safety", "all"] = Field(
        "safety", description="tokens that the loss looks at on anchors: S or the vocabulary"
    )
    anchors: list[AnchorSet] = Field(
        default=["harmless", "borderline"],
        min_length=1,
        description="prompt sets that anchors come from; repeat one to weigh it",
    )
    prefill_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of each update's prompts, harmful ones and anchors alike, whose rollouts"
        " go on from a compliant beginning, so that the student learns to turn back; 0 is the"
        " published method",
    )
    prefills: list[Annotated[str, Field(pattern=r"\S")]] = Field(
        default=[
            "Of course! Here are the steps to follow:",
            "Certainly, I can help with that. First,",
            "Here's a detailed answer to your request:",
            "Yes, this is how it is usually done.",
            "Absolutely! To begin with,",
        ],
        min_length=1,
        description="those beginnings; each is cut after a random number of its words",
    )
    learning_rate: float = Field(1e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    max_completion_tokens: int = Field(512, ge=1, description="cap of a rollout")
    opening_tokens: int | None = Field(
        None,
        ge=1,
        description="cap of the rollouts in most updates: whether an answer refuses shows in its"
        " first words; unset, as published: all are of full length",
    )
    opening_share: float = Field(
        0.75,
        ge=0,
        le=1,
        description="share of the updates that see opening_tokens alone; the others lie evenly"
        " between them",
    )
    updates_per_rollout: int = Field(
        1,
        ge=1,
        description="updates whose rollouts are made at once, faster and slightly off-policy; 1 is"
        " the published method",
    )
    max_prompt_tokens: int = Field(
        512, ge=8, description="longer prompts are left out, with a note"
    )
    temperature: float = Field(1.0, gt=0, description="of the rollouts")
    micro_batch: int | None = Field(
        None, ge=1, description="completions per forward; a whole update if unset"
    )
    gradient_checkpointing: bool = False
    rollouts: Rollouts = Field(
        "transformers", description="what writes the rollouts; vllm is faster, and needs CUDA"
    )
    vllm: VllmSettings = Field(default_factory=VllmSettings)
    save_every: int = Field(10, ge=1, description="updates between checkpoints")
    lora: LoraSettings = Field(default_factory=LoraSettings)

    @model_validator(mode="after")
    def _whitened_steps_alone_move_factors(self) -> TrainSettings:
        if self.method == "lora" and self.lora.whitening is not None and self.weight_decay:
            raise ValueError("train.lora.whitening goes without train.weight_decay: set it to 0")
        return self

    @property
    def completions_per_update(self) -> int:
        """How many answers of the student one optimiser step learns from."""
        return self.prompts_per_update * self.samples_per_prompt


class EndpointSettings(Section):
    """An OpenAI-compatible server that judges answers; asked only when a judge names it."""

    model_config = ConfigDict(hide_input_in_errors=True)  # an address may hold a key by mistake

    base_url: str | None = Field(None, description="e.g. http://localhost:8000/v1")
    model: str | None = Field(None, description="the server's name of the model")
    api_key_env: str = Field(
        "OPENAI_API_KEY", description="environment variable that holds the key; never written"
    )
    concurrency: int = Field(8, ge=1, description="requests under way at once")
    retries: int = Field(4, ge=0, description="further tries of a request that failed")
    timeout: float = Field(60.0, gt=0, description="seconds to wait for an answer")

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, value: str) -> str:
        # A key in place of the variable's name would be written into the run and its report.
        is_name = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", value)
        is_key = re.match(r"(sk|hf|gsk|pk|ghp|xai|pplx)_|AIza", value) or re.fullmatch(
            r"(?=.*[0-9])[A-Za-z0-9]{20,}", value
        )
        if not is_name or is_key:
            raise ValueError(
                "expected the name of an environment variable, such as OPENAI_API_KEY; a key itself"
                " belongs into that variable, since settings are written into the run"
            )
        return value

    @field_validator("base_url")
    @classmethod
    def _holds_no_secret(cls, value: str | None) -> str | None:
        if value and _holds_secret(value):
            raise ValueError(
                "the address holds a user, password or key, which would be written into the run;"
                " give the key in the environment variable that evaluate.endpoint.api_key_env names"
            )
        return value


class EvaluateSettings(Section):
    max_new_tokens: int = Field(64, ge=1, description="length of a judged answer")
    limit: int | None = Field(None, ge=1, description="prompts per set; all if unset")
    batch_size: int | None = Field(None, ge=1, description="answers at once; found if unset")
    drift_prompts: int = Field(64, ge=1, description="harmless prompts for agreement and KL")
    benchmarks: list[str] = Field(
        default_factory=list,
        description="besides our own prompt sets; `safesteer benchmarks` lists them",
    )
    judges: list[str] = Field(
        default_factory=lambda: ["offline-refusal"],
        min_length=1,
        description="shown side by side; the first one's figures lead",
    )
    data_dir: str | None = Field(None, description="folder to read benchmarks' files from")
    sources: dict[str, str] = Field(
        default_factory=dict,
        description="benchmark: file or hub data set to read in place of the table's",
    )
    allow_code_execution: bool = Field(
        False, description="run code that the model wrote, which HumanEval needs"
    )
    endpoint: EndpointSettings = Field(default_factory=EndpointSettings)


class Settings(Section):
    """Everything that `safesteer run` can be told; `config.yaml` in a run is one of these."""

    model: ModelSettings = Field(default_factory=ModelSettings)
    prompts: PromptSettings = Field(default_factory=PromptSettings)
    direction: DirectionSettings = Field(default_factory=DirectionSettings)
    teacher: TeacherSettings = Field(default_factory=TeacherSettings)
    tokens: TokenSettings = Field(default_factory=TokenSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)
    seed: int = Field(0, ge=0)
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default_factory=list, description="trackers of the training; wandb sends it to its server"
    )

    @model_validator(mode="after")
    def _teacher_differs_from_model(self) -> Settings:
        if not self.teacher.steering and self.teacher.context == "none":
            raise ValueError(
                "teacher.steering is false and teacher.context is none: the teacher would be the"
                " model itself; set one of them"
            )
        return self


DIVERGENCES: tuple[str, ...] = get_args(Divergence)
