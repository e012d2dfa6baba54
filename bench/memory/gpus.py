"""GPUs that fit the paper's four models at their recipes, and the time of a run on paper.

    python -m bench.memory gpus

Nothing is run or downloaded: the dimensions below are those of the models' published config.json,
the models are built without weights (`safesteer.memory`), and times are operations divided by a
stated share of a GPU's speed. Prompts are taken to have 128 tokens. Prints the largest micro-batch
that fits on each GPU, the parts of one model's peak, and minutes per stage.
"""

from __future__ import annotations

import argparse

from transformers import AutoConfig

from bench.tables import table_head, table_row
from safesteer.config.load import load_settings
from safesteer.config.settings import Settings
from safesteer.memory.gpus import GPU_SIZES, SETUPS, gpu_fits
from safesteer.memory.lengths import assumed_lengths
from safesteer.memory.shape import Shape
from safesteer.memory.stages import Placement, predict

# Recipe: model_type, width, intermediate width, blocks, heads, heads of keys, dimension of a head,
# vocabulary, whether the output matrix is the embedding.
MODELS = {
    "llama-3-8b": ("llama", 4096, 14336, 32, 32, 8, 128, 128256, False),
    "llama-3.2-3b": ("llama", 3072, 8192, 28, 24, 8, 128, 128256, True),
    "qwen2.5-7b": ("qwen2", 3584, 18944, 28, 28, 4, 128, 152064, False),
    "qwen3-4b": ("qwen3", 2560, 9728, 36, 32, 8, 128, 151936, True),
}
# GB: name, dense bfloat16 operations per second, bytes per second of its memory (data sheets).
SPEEDS = {24: ("RTX 4090", 165e12, 1.01e12), 80: ("H100 SXM", 989e12, 3.35e12)}
# The share of those speeds that passes and reading weights reach, and the seconds per block that a
# step of generation waits for Python and kernels. Assumptions, not measurements.
PASS_SHARE, READ_SHARE, STEP_SECONDS = 0.35, 0.6, 0.8e-3
# Tokens after the user's text in the template, which make candidates: Llama 3's has 5.
POSITIONS = 5
TEST_PROMPTS = 338
STAGES = ("direction", "tokens", "train", "evaluate")


def shape_of(recipe: str) -> Shape:
    """The model's shape, from its published dimensions."""
    kind, width, intermediate, layers, heads, keys, dimension, vocabulary, tied = MODELS[recipe]
    config = AutoConfig.for_model(
        kind,
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        head_dim=dimension,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )
    return Shape.of_config(config)


def operations(shape: Shape, settings: Settings, *, lora: bool) -> dict[str, tuple[float, int]]:
    """{stage: (operations of its passes, generation steps, which run one after the other)}.

    A pass of a token costs 2 operations per weight of the blocks. A backward pass costs as much
    again for the gradients of the activations, and once more for those of the weights where all are
    trained; with checkpointing the forward pass runs twice. For every token of a completion the
    output matrix costs a product for the student, one for the teacher, and one for the gradient.
    """
    d, k, t, e = settings.direction, settings.tokens, settings.train, settings.evaluate
    prompt = assumed_lengths(settings).prompt
    token = 2 * shape.block_weights
    head = 2 * shape.vocabulary * shape.width
    candidates = POSITIONS * int(shape.layers * (1 - d.advanced.drop_last_layers))
    # Additions run the blocks from their layer on, on average 60% of them; all pass every test.
    read = candidates * d.advanced.validation_prompts * (0.6 + 1 + 1)
    read += 2 * d.advanced.train_prompts
    continuations = k.advanced.num_prompts * k.num_generations
    steps = t.max_steps or (t.num_prompts or 0) // t.prompts_per_step
    completions = steps * t.completions_per_step
    written = completions * t.max_completion_length
    trained = completions * (prompt + t.max_completion_length)
    # Rollouts, the teacher, the student: forward twice, backward.
    passes = 1 + 1 + 2 + (1 if lora else 2)
    answers = 3 * TEST_PROMPTS
    batches = 3 * -(-TEST_PROMPTS // 64)
    return {
        "direction": (read * prompt * token, 14 * 24),
        "tokens": (
            continuations * 3 * (prompt + k.horizon) * token,
            k.horizon * continuations // 32,
        ),
        "train": (
            passes * trained * token + 3 * written * head,
            steps * t.max_completion_length * -(-t.completions_per_step // 64),
        ),
        "evaluate": (answers * (prompt + e.max_new_tokens) * token, batches * e.max_new_tokens),
    }


def seconds(shape: Shape, work: tuple[float, int], gigabytes: int, lora: bool) -> float:
    """Time of a stage: passes at a share of the GPU's speed, steps at one of its memory's."""
    _, speed, bandwidth = SPEEDS[gigabytes]
    # Trained in float32, rollouts read weights of 4 bytes.
    step = (2 if lora else 4) * shape.parameters / (READ_SHARE * bandwidth)
    return work[0] / (PASS_SHARE * speed) + work[1] * max(step, STEP_SECONDS * shape.layers)


def add_arguments(_: argparse.ArgumentParser) -> None:
    """There are no options."""


def run(_: argparse.Namespace) -> None:
    """Print what fits, the arithmetic of one model, and times."""
    shapes = {recipe: shape_of(recipe) for recipe in MODELS}
    found = {}
    print(table_head("recipe", "training", "peak", *(f"{size} GB" for size in GPU_SIZES)))
    for recipe, shape in shapes.items():
        settings = load_settings(recipe)
        found[recipe] = gpu_fits(shape, settings, assumed_lengths(settings))
        for fit in found[recipe]:
            largest = [fit.micro_batches[size] or "-" for size in GPU_SIZES]
            print(table_row(recipe, fit.setup, f"{fit.peak / 2**30:.1f} GiB", *largest))
    recipe = "llama-3.2-3b"
    settings, shape = load_settings(recipe), shapes[recipe]
    for option in (SETUPS[1], SETUPS[-1]):
        changed, place = option.apply(settings, Placement("cuda", 2, gpu_memory=80 * 2**30))
        print(f"\n{recipe}, {option.name} ({shape.parameters:,} parameters)")
        for stage, peak in predict(shape, changed, assumed_lengths(settings), place).items():
            parts = ", ".join(f"{name} {count / 2**30:.2f}" for name, count in peak.parts.items())
            print(f"  {stage}: {peak.bytes / 2**30:.1f} GiB = {parts}")
    print("\n" + table_head("recipe", "GPU", "training", *STAGES, "all"))
    for recipe, shape in shapes.items():
        micro_batches = {fit.setup: fit.micro_batches for fit in found[recipe]}
        for size, (name, _, _) in SPEEDS.items():
            for option in (SETUPS[1].name, SETUPS[-1].name):
                if micro_batches[option][size]:
                    lora = option.startswith("LoRA")
                    work = operations(shape, load_settings(recipe), lora=lora)
                    each = [seconds(shape, work[stage], size, lora) / 60 for stage in STAGES]
                    minutes = [f"{value:.1f}" for value in (*each, sum(each))]
                    print(table_row(recipe, f"{name}, {size} GB", option, *minutes))
