"""Training setups that fit on a GPU: predicted peak memory against capacity.

A setup changes some settings, or quantizes the base. The micro-batch does not change a training
step, so that a setup is shown with the largest one that fits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from safesteer.config.settings import Settings
from safesteer.memory.shape import Shape
from safesteer.memory.stages import Lengths, Placement, predict

GPU_SIZES = (8, 16, 24, 48, 80)  # GB
# Share of a GPU's memory for tensors; the rest goes to the CUDA context, the libraries' workspace
# and fragmentation. An estimate: it was not measured on a GPU.
USABLE = 0.9


@dataclass(frozen=True)
class Setup:
    """A way to train: changes of the section `train`, and the bits of a quantized base."""

    name: str
    train: tuple[tuple[str, object], ...]
    bits: int | None = None

    def apply(self, settings: Settings, place: Placement) -> tuple[Settings, Placement]:
        """Settings and placement with the changes of this setup."""
        return _with_train(settings, dict(self.train)), replace(place, bits=self.bits)


_LORA = ("method", "lora")
_PLAIN, _CHECKPOINTING = ("gradient_checkpointing", False), ("gradient_checkpointing", True)
SETUPS = (
    Setup("LoRA", (_LORA, _PLAIN)),
    Setup("LoRA, checkpointing", (_LORA, _CHECKPOINTING)),
    Setup("LoRA, checkpointing, 8-bit base", (_LORA, _CHECKPOINTING), 8),
    Setup("LoRA, checkpointing, 4-bit base", (_LORA, _CHECKPOINTING), 4),
    Setup("all weights, checkpointing", (("method", "full"), _CHECKPOINTING)),
)


@dataclass(frozen=True)
class GpuFit:
    """A setup on GPUs of several sizes."""

    setup: str  # its name
    peak: float  # bytes of the largest stage with the micro-batch of the settings
    least: float  # bytes of the largest stage with micro-batch 1
    micro_batches: dict[int, int]  # {GB of the GPU: largest that fits; 0 where not even 1 does}


def usable(gigabytes: float) -> float:
    """Bytes for tensors on a GPU sold as so many GB, which are 2^30 bytes each."""
    return USABLE * gigabytes * 2**30


def gpu_fits(shape: Shape, settings: Settings, lengths: Lengths) -> list[GpuFit]:
    """Every setup on every size of GPU."""
    return [_fit(setup, shape, settings, lengths) for setup in SETUPS]


def peak_of_run(
    shape: Shape, settings: Settings, lengths: Lengths, place: Placement, micro_batch: int
) -> float:
    """Bytes of the largest stage with this micro-batch."""
    changed = _with_train(settings, {"per_device_train_batch_size": micro_batch})
    return max(peak.bytes for peak in predict(shape, changed, lengths, place).values())


def largest_micro_batch(
    shape: Shape, settings: Settings, lengths: Lengths, place: Placement, room: float
) -> int:
    """The largest micro-batch, up to that of the settings, whose stages fit in `room` bytes.

    0 if none does. Only divisors of a step's completions count: training uses equal micro-batches.
    """
    for count in range(_micro_batch(settings), 0, -1):
        divides = settings.train.completions_per_step % count == 0
        if divides and peak_of_run(shape, settings, lengths, place, count) <= room:
            return count
    return 0


def suggest(
    shape: Shape, settings: Settings, lengths: Lengths, place: Placement, room: float
) -> str:
    """The change of settings with which training fits in `room` bytes.

    The first that suffices of: a smaller micro-batch, gradient checkpointing, LoRA, a quantized
    base. Where none does, the size of GPU that is needed.
    """
    if count := largest_micro_batch(shape, settings, lengths, place, room):
        return f"train.per_device_train_batch_size={count}"
    least = []
    for setup in SETUPS:
        changed, placed = setup.apply(settings, place)
        if settings.train.method == "lora" and changed.train.method == "full":
            continue
        if count := largest_micro_batch(shape, changed, lengths, placed, room):
            words = [
                f"train.{key}={str(value).lower()}"
                for key, value in setup.train
                if getattr(settings.train, key) != value
            ]
            if setup.bits is not None and setup.bits != place.bits:
                words.append(f"model.quantization={setup.bits}bit")
            if count < _micro_batch(settings):
                words.append(f"train.per_device_train_batch_size={count}")
            return " ".join(words)
        least.append(peak_of_run(shape, changed, lengths, placed, 1))
    return f"a device with {min(least) / USABLE / 2**30:.0f} GB or more, or a smaller model"


def _fit(setup: Setup, shape: Shape, settings: Settings, lengths: Lengths) -> GpuFit:
    changed, place = setup.apply(settings, Placement("cuda", 2))
    found = {}
    for gigabytes in GPU_SIZES:
        on_gpu = replace(place, gpu_memory=gigabytes * 2**30)
        found[gigabytes] = largest_micro_batch(shape, changed, lengths, on_gpu, usable(gigabytes))
    # Answers are batched by the GPU's memory; the peak without a GPU is that on the smallest one.
    smallest = replace(place, gpu_memory=GPU_SIZES[0] * 2**30)
    return GpuFit(
        setup.name,
        peak_of_run(shape, changed, lengths, smallest, _micro_batch(changed)),
        peak_of_run(shape, changed, lengths, smallest, 1),
        found,
    )


def _micro_batch(settings: Settings) -> int:
    """The micro-batch of the settings, at most a whole step."""
    own = settings.train.completions_per_step
    return min(settings.train.per_device_train_batch_size or own, own)


def _with_train(settings: Settings, changes: dict[str, object]) -> Settings:
    train = settings.train.model_copy(update=changes)
    return settings.model_copy(update={"train": train})
