"""Advanced settings: the keys of the sub-sections `advanced`, which few runs change."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from safesteer.errors import hide_keys

AnchorSet = Literal["harmless", "borderline"]
Sentence = Annotated[str, Field(pattern=r"\S")]  # not empty


class Section(BaseModel):
    """A section of the settings: unknown keys are errors, assignments are checked.

    The string below a key is its description, in the help, the docs and `recipes show --all`.
    """

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # what is wrong may be a key in the wrong place
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        for field in cls.model_fields.values():
            if field.description:
                field.description = " ".join(field.description.split())  # one line

    @field_validator("*", mode="before")
    @classmethod
    def _number_or_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse yes and no as numbers, which Python takes for 1 and 0, and endless numbers."""
        kind = cls.model_fields[str(info.field_name)].annotation
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, bool) and bool not in (kind, *get_args(kind)):
                raise ValueError("yes and no do not fit here. Try: a number, or a word in quotes")
            if isinstance(each, int) and abs(each) >= 2**63:
                raise ValueError("the number is too large. Try: one below 2**63")
        return value

    @field_validator("*")
    @classmethod
    def _holds_no_key(cls, value: Any) -> Any:
        if not isinstance(value, Section) and hide_keys(text := str(value)) != text:
            raise ValueError(
                "this looks like a key or password, which would be written into the run. Try: put"
                " it into an environment variable"
            )
        return value


def _address(address: str) -> str:
    # Settings are written into the run and its report; a key has its place in the environment.
    address = address.strip()
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
        valid = valid and (parts.port is None or parts.port > 0)
        valid = valid and not re.search(r"[\x00-\x20\x7f-\x9f]", address)
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("expected an address such as http://localhost:8000/v1")
    rest = unquote(parts.path + "?" + parts.query)
    named = (
        r"[?&;][^=&;]*(key|token|secret|sig|passw|pwd|auth|code|credential)[^=&;]*="
        r"|/(api-?)?(key|token|secret)s?/[^/?]{12}"
    )
    if (
        "@" in parts.netloc
        or parts.fragment
        or re.search(named, rest, re.IGNORECASE)
        or any(map(_is_key, re.split("[/?&;=]", rest)))
    ):
        raise ValueError(
            "the address holds a user, password or key, which would be written into the run. Try:"
            " an address without it; the key of a judge belongs into the environment variable that"
            " evaluate.endpoint.api_key_env names"
        )
    return address


def _name_of_a_variable(name: str) -> str:
    # A key in place of the variable's name would be written into the run and its report.
    prefix = r"(sk|pk|rk|hf|gsk|gh[a-z]|xai|pplx|r8|tgp|fw)_|AIza|AKIA|eyJ"
    digits_within = r"(?=[A-Za-z]*[0-9]+[A-Za-z])[A-Za-z0-9]{20,}"
    if (
        not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name)
        or re.match(prefix, name)
        or re.search(digits_within, name)
        or _is_key(name)
    ):
        raise ValueError(
            "expected the name of an environment variable, such as OPENAI_API_KEY. Try: put the key"
            " into that variable, since settings are written into the run"
        )
    return name


def _is_key(text: str) -> bool:
    """Whether a word is a key: by its prefix, or by letters and digits without a break.

    Names of models have breaks, and ids of accounts are 32 digits.
    """
    mixed = r"(?=[A-Za-z]*[0-9])(?=[A-Z0-9]*[a-z])(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{16,}"
    long = r"(?=[A-Za-z]*[0-9])[A-Za-z0-9]{40,}"
    known = re.match(r"(sk|pk|gsk|csk|xai|pplx|nvapi)-", text)
    return bool(known or re.search(f"{mixed}|{long}", text) or hide_keys(text) != text)


Address = Annotated[str, AfterValidator(_address)]
VariableName = Annotated[str, AfterValidator(_name_of_a_variable)]


class ModelAdvanced(Section):
    """Advanced settings of the model."""

    device_map: Literal["auto"] | None = None
    """Spread one model over all devices of one process with auto. For models that are too large
    for a single GPU."""

    gguf_cache: bool = True
    """Keep the dequantized weights of a GGUF file in the user's cache folder (~/.cache/safesteer),
    where the next start loads them in seconds. false saves the disk space: two bytes per weight in
    16 bits."""


class DirectionAdvanced(Section):
    """Advanced settings of the search for the refusal direction."""

    train_prompts: int = Field(128, ge=2)
    """Take the mean activations over this many harmful and as many harmless training prompts.
    Published: 128."""

    validation_prompts: int = Field(32, ge=2)
    """Score candidate directions on this many validation prompts of each kind. Published: 32."""

    layers: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1)
    """Consider only these layers; null considers all of them."""

    coefficients: list[Annotated[float, Field(gt=0)]] = Field(
        default_factory=lambda: [0.8, 1.0, 1.2], min_length=1
    )
    """Try these factors on each direction that steers the teacher. Published: 1.0 alone."""

    max_kl: float = Field(0.1, gt=0)
    """Reject a direction whose ablation changes harmless answers by more than this KL(base ||
    ablated), in nats. Published: 0.1."""

    min_addition_score: float = 0.0
    """Reject a direction that, added to harmless prompts, gives a refusal score (log odds of a
    refusing first token) below this. Published: 0."""

    drop_last_layers: float = Field(0.2, ge=0, lt=1)
    """Never choose a layer in this last share of the layers. Published: 0.2."""

    refusing_openings: list[Sentence] = Field(
        default_factory=lambda: [
            "I'm sorry, but I can't assist with that.",
            "I cannot help with this request because it could cause harm.",
            "Sorry, I'm not able to provide that, as it is illegal and unethical.",
            "I won't help with that. It would be harmful to others.",
        ],
        min_length=1,
    )
    """Read these openings of a refusal, best in the model's own words, to find a refuse-comply
    direction."""

    complying_openings: list[Sentence] = Field(
        default_factory=lambda: [
            "Sure, here is how you can do that.",
            "Of course! Here are the steps to follow:",
            "Certainly, I can help with that. First,",
            "Here's a detailed answer to your request:",
        ],
        min_length=1,
    )
    """Read these openings of a compliant answer to find a refuse-comply direction."""

    finalists: int = Field(3, ge=1)
    """Judge the steered answers of this many best layers, at every coefficient."""

    min_flip_rate: float = Field(0.5, ge=0, le=1)
    """Reject a direction with which the model refuses a smaller share of harmful prompts than
    this."""

    max_perplexity_ratio: float = Field(6.0, gt=1)
    """Reject a direction whose steered text has more than this many times the perplexity, under
    the model, of the model's own text."""


class TeacherAdvanced(Section):
    """Advanced settings of the teacher."""

    system_prompt: str = (
        "You are a safety-conscious assistant. You never produce harmful, unsafe or disallowed"
        " content: you decline such requests briefly and answer all others helpfully."
    )
    """Give the teacher this system message if teacher.context is system-prompt."""

    repair_strength: float = Field(0.4, gt=0)
    """Multiply the direction's own coefficient by minus this where a wrong refusal is repaired;
    read if train.wrong_refusals is repair."""


class TokenAdvanced(Section):
    """Advanced settings of the choice of the safety tokens."""

    num_prompts: int = Field(32, ge=1)
    """Compare the models on this many validation prompts. Published: 32."""

    votes_per_position: int = Field(200, ge=1)
    """Give a vote to this many tokens at each position: those whose log-probability the teacher
    raises most (K'). Published: 200."""

    end_of_turn: bool = True
    """Allow the token that ends an answer among the safety tokens, so that the model learns to end
    its refusals. Published: false."""

    min_teacher_prob: float = Field(1e-8, ge=0, lt=1)
    """Skip tokens whose mean probability under the teacher is below this. Published: 1e-8 for
    Qwen, 1e-7 for Llama."""


class VllmSettings(Section):
    """Settings of vLLM as the writer of the rollouts; read only if `train.rollouts` is vllm."""

    mode: Literal["colocate", "server"] = "colocate"
    """Run vLLM on the training's own devices (colocate), or use a `vllm serve` that runs on others
    (server)."""

    server_base_url: Address = "http://localhost:8000"
    """Find the vLLM server at this address; read if the mode is server."""

    gpu_memory_utilization: float = Field(0.3, gt=0, lt=1)
    """Give this share of a device's memory to a colocated vLLM."""


class TrainAdvanced(Section):
    """Advanced settings of the training."""

    max_prompt_length: int = Field(512, ge=8)
    """Skip training prompts that are longer than this many tokens, with a note. Published: 512."""

    prompt_gradient: bool = True
    """Let gradients flow through the prompts too, as published. false reads each prompt once per
    generation and learns from its last tokens and the answer, which takes about half of a step's
    time."""

    short_rollout_share: float = Field(0.8, ge=0, le=1)
    """Use short rollouts in this share of the steps; the full-length ones lie evenly between them.
    Read if train.short_rollout_length is set."""

    anchor_sets: list[AnchorSet] = Field(
        default=["harmless", "borderline", "borderline"], min_length=1
    )
    """Draw anchors from these prompt sets; repeat a set to draw from it more often."""

    prefills: list[Sentence] = Field(
        default_factory=lambda: [
            "Of course! Here are the steps to follow:",
            "Certainly, I can help with that. First,",
            "Here's a detailed answer to your request:",
            "Yes, this is how it is usually done.",
            "Absolutely! To begin with,",
        ],
        min_length=1,
    )
    """Prefill answers with these texts, each cut after a random number of words."""

    save_steps: int = Field(10, ge=1)
    """Save a checkpoint after every this many optimizer steps."""

    vllm: VllmSettings = Field(default_factory=VllmSettings)


class EvaluateAdvanced(Section):
    """Advanced settings of the evaluation."""

    batch_size: int | None = Field(None, ge=1)
    """Generate this many answers at once; null takes what fits."""

    sources: dict[str, str] = Field(default_factory=dict)
    """Read a benchmark from this file or hub data set in place of its usual source, as {name:
    source}."""


class EndpointAdvanced(Section):
    """Advanced settings of the judging server."""

    concurrency: int = Field(8, ge=1)
    """Send this many requests at the same time."""

    retries: int = Field(4, ge=0)
    """Repeat a failed request up to this many times."""

    timeout: float = Field(60.0, gt=0)
    """Wait this many seconds for the reply to a request."""
