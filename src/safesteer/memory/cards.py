"""Which card fits which way to train: the predicted peaks against what a card has.

An option is a change of the settings, or a base in fewer bits. Where the batch of the settings does
not fit, the largest micro batch that does is named: an update is the same with any of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from safesteer.config.settings import Settings
from safesteer.memory.shape import Shape
from safesteer.memory.stages import Lengths, Placement, predict

CARDS = (8, 16, 24, 48, 80)
# Of a card's memory; the rest is for the CUDA context, the libraries' work space, and what an
# allocator cannot use. An estimate: no GPU was at hand.
USABLE = 0.9


@dataclass(frozen=True)
class Option:
    """A way to train: changed keys of the section `train`, and the bits of the base."""

    name: str
    train: tuple[tuple[str, object], ...]
    bits: int | None = None

    def apply(self, settings: Settings, place: Placement) -> tuple[Settings, Placement]:
        """The settings and the placement, changed."""
        train = settings.train.model_copy(update=dict(self.train))
        return settings.model_copy(update={"train": train}), replace(place, bits=self.bits)


_LORA = ("method", "lora")
_PLAIN, _CHECKPOINTS = ("gradient_checkpointing", False), ("gradient_checkpointing", True)
OPTIONS = (
    Option("LoRA", (_LORA, _PLAIN)),
    Option("LoRA, checkpointing", (_LORA, _CHECKPOINTS)),
    Option("LoRA, checkpointing, 8-bit base", (_LORA, _CHECKPOINTS), 8),
    Option("LoRA, checkpointing, 4-bit base", (_LORA, _CHECKPOINTS), 4),
    Option("all weights, checkpointing", (("method", "full"), _CHECKPOINTS)),
)


@dataclass(frozen=True)
class Fit:
    """An option and how it fits.

    Attributes:
        option: its name.
        peak: bytes of the largest stage with the settings' micro batch.
        least: bytes of the largest stage with a micro batch of 1.
        micro_batches: {GB of a card: the largest micro batch that fits; 0: none does}.
    """

    option: str
    peak: float
    least: float
    micro_batches: dict[int, int]


def usable(gigabytes: float) -> float:
    """Bytes for tensors on a card that is sold with so many GB, which are 2^30 bytes each."""
    return USABLE * gigabytes * 2**30


def fits(shape: Shape, settings: Settings, lengths: Lengths) -> list[Fit]:
    """Every option on every card."""
    return [_fit(option, shape, settings, lengths) for option in OPTIONS]


def peak_of_run(
    shape: Shape, settings: Settings, lengths: Lengths, place: Placement, micro_batch: int
) -> float:
    """Bytes of the largest stage with this micro batch."""
    train = settings.train.model_copy(update={"per_device_train_batch_size": micro_batch})
    changed = settings.model_copy(update={"train": train})
    return max(peak.bytes for peak in predict(shape, changed, lengths, place).values())


def largest_micro_batch(
    shape: Shape, settings: Settings, lengths: Lengths, place: Placement, room: float
) -> int:
    """The largest micro batch, up to that of the settings, with which all stages fit; 0: none."""
    own = settings.train.completions_per_step
    most = min(settings.train.per_device_train_batch_size or own, own)
    for count in range(most, 0, -1):
        # Equal micro batches, as training makes them.
        if own % count == 0 and peak_of_run(shape, settings, lengths, place, count) <= room:
            return count
    return 0


def what_would_fit(
    shape: Shape, settings: Settings, lengths: Lengths, place: Placement, room: float
) -> str:
    """What to change so that a training that does not fit into `room` bytes does, in a few words.

    The first of: a smaller micro batch, gradient checkpointing, LoRA, a base in fewer bits; or what
    is needed at least.
    """
    if count := largest_micro_batch(shape, settings, lengths, place, room):
        return f"train.per_device_train_batch_size={count}"
    tried = []
    for option in OPTIONS:
        changed, placed = option.apply(settings, place)
        if settings.train.method == "lora" and changed.train.method == "full":
            continue
        if count := largest_micro_batch(shape, changed, lengths, placed, room):
            keys = {key: value for key, value in option.train}
            words = [
                f"train.{key}={str(value).lower()}"
                for key, value in keys.items()
                if getattr(settings.train, key) != value
            ]
            if option.bits is not None and option.bits != place.bits:
                words.append(f"model.quantization={option.bits}bit")
            if count < (
                settings.train.per_device_train_batch_size or settings.train.completions_per_step
            ):
                words.append(f"train.per_device_train_batch_size={count}")
            return " ".join(words)
        tried.append(peak_of_run(shape, changed, lengths, placed, 1))
    return f"a device with {min(tried) / USABLE / 2**30:.0f} GB or more, or a smaller model"


def _fit(option: Option, shape: Shape, settings: Settings, lengths: Lengths) -> Fit:
    changed, place = option.apply(settings, Placement("cuda", 2))
    own = changed.train.completions_per_step
    found = {}
    for card in CARDS:
        on_card = replace(place, card=card * 2**30)
        found[card] = largest_micro_batch(shape, changed, lengths, on_card, usable(card))
    # Answers are batched by the card's memory: as on the smallest one for a figure without a card.
    smallest = replace(place, card=CARDS[0] * 2**30)
    return Fit(
        option.name,
        peak_of_run(
            shape,
            changed,
            lengths,
            smallest,
            min(changed.train.per_device_train_batch_size or own, own),
        ),
        peak_of_run(shape, changed, lengths, smallest, 1),
        found,
    )
