"""SafeSteer as a TRL script: find the direction, choose the safety tokens, train an adapter.

    python examples/train_with_trl.py --output_dir out --max_steps 20 --learning_rate 2e-3

--model_name_or_path takes another model, and --help shows all options of `SafeSteerConfig`.
"""

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import ModelConfig, TrlParser

import safesteer
from safesteer.teacher import make_teacher

model_args, args = TrlParser((ModelConfig, safesteer.SafeSteerConfig)).parse_args_and_config()
search = {"finalists": 1, "coefficients": [1.0], "train_prompts": 32}  # fewer than by default
settings = safesteer.load_settings("smollm2-135m", direction={"advanced": search})
model = safesteer.load_model(model_args.model_name_or_path or "smollm2-135m")
harmful, harmless = map(safesteer.load_prompt_set, ("harmful", "harmless"))
prompts = [
    [list(prompt.messages) for prompt in split[:64]]
    for split in (harmful.train, harmless.train, harmful.validation, harmless.validation)
]
direction = safesteer.extract_direction(model, *prompts, settings.direction).direction
teacher = make_teacher(settings.teacher, direction)
tokens = safesteer.select_safety_tokens(model, teacher, prompts[2][:16], settings.tokens).ids
print(f"layer {direction.layer}, {len(tokens)} safety tokens")
before = safesteer.refusal_rate(model, harmful.validation[:20])
rows = [{"prompt": prompt, "anchor": False} for prompt in prompts[0]]
rows += [{"prompt": prompt, "anchor": True} for prompt in prompts[1]]
trainer = safesteer.SafeSteerTrainer(
    get_peft_model(model.model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")),
    args=args,
    train_dataset=Dataset.from_list(rows),
    processing_class=model.tokenizer,
    teacher=teacher,
    safety_tokens=tokens,
)
trainer.train()
trainer.save_model()
after = safesteer.refusal_rate(model, harmful.validation[:20], student=trainer.model)
print(f"harmful prompts refused: {before.value:.0%} before, {after.value:.0%} after")
