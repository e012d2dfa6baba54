"""Prompt sets: harmful requests, harmless ones, and borderline ones that only sound alarming.

``data/`` holds our own three sets. Most harmless prompts are matched to a harmful one in form and
length by the key ``pair``. ``builtin:borderline-large`` adds borderline-more.jsonl to the
borderline ones; its key ``type`` is one of XSTest's ten types, or curiosity, household or tasks.
"""

from safesteer.prompts.load import Prompt, load_prompts
from safesteer.prompts.rows import PROMPT_SETS
from safesteer.prompts.splits import PromptSet, load_prompt_set, load_prompt_sets

__all__ = [
    "PROMPT_SETS",
    "Prompt",
    "PromptSet",
    "load_prompt_set",
    "load_prompt_sets",
    "load_prompts",
]
