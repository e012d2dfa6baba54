"""The method inside a plain TRL script: find the direction, select the tokens, train, save.

    python examples/train_with_trl.py                        # the built-in model
    python examples/train_with_trl.py --model MODEL --max-steps 100 --tokens 64

`safesteer run` does the same with recipes, checkpoints, an evaluation and a report. Here everything
is in sight and open to change: `SafeSteerTrainer` is a `trl.DistillationTrainer`, and takes TRL's
arguments, callbacks and launchers.
"""

from __future__ import annotations

import argparse

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import DistillationConfig

import safesteer
from safesteer.config.advanced import DirectionAdvanced
from safesteer.config.settings import DirectionSettings, TokenSettings

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--model", default="smollm2-135m", help="hub id, folder or .gguf file")
parser.add_argument("--output", default="trl-run", help="folder of checkpoints and adapter")
parser.add_argument("--prompts", type=int, default=64, help="of each kind, at most")
parser.add_argument("--max-steps", type=int, default=20)
parser.add_argument("--batch", type=int, default=16, help="answers per step")
parser.add_argument("--tokens", type=int, default=16, help="length of an answer, at most")
parser.add_argument("--learning-rate", type=float, default=1e-3)
arguments = parser.parse_args()

model = safesteer.load_model(arguments.model)
harmful, harmless = (safesteer.load_prompt_set(name) for name in ("harmful", "harmless"))


def messages(prompts):
    return [list(prompt.messages) for prompt in prompts][: arguments.prompts]


direction = safesteer.extract_direction(
    model,
    messages(harmful.train),
    messages(harmless.train),
    messages(harmful.validation),
    messages(harmless.validation),
    DirectionSettings(
        source="refuse-comply", advanced=DirectionAdvanced(finalists=1, coefficients=[1.0])
    ),
)
teacher = safesteer.Teacher(direction.direction)
safety_tokens = safesteer.select_safety_tokens(
    model,
    teacher,
    messages(harmful.validation),
    TokenSettings(num_generations=1, horizon=arguments.tokens),
).ids
print(f"layer {direction.direction.layer}, {len(safety_tokens)} safety tokens")

# On anchors the teacher is the model as it was: the student learns where not to refuse.
rows = [{"prompt": prompt, "anchor": False} for prompt in messages(harmful.train)]
rows += [{"prompt": prompt, "anchor": True} for prompt in messages(harmless.train)]
student = get_peft_model(
    model.model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
)
trainer = safesteer.SafeSteerTrainer(
    student,
    DistillationConfig(
        output_dir=arguments.output,
        max_steps=arguments.max_steps,
        per_device_train_batch_size=arguments.batch,
        learning_rate=arguments.learning_rate,
        max_completion_length=arguments.tokens,
        gradient_checkpointing=False,
        bf16=False,  # the weights are in bfloat16 already where that is faster
        use_cpu=model.model.device.type == "cpu",
        logging_steps=1,
        report_to="none",
    ),
    Dataset.from_list(rows),
    chat=model.chat,
    teacher=teacher,
    safety_tokens=safety_tokens,
    divergence="forward",
)
trainer.train()
student.save_pretrained(arguments.output)
print(f"adapter in {arguments.output}")
