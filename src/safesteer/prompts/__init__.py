"""Prompts: what the model should refuse, what it should keep answering, and what only sounds bad.

``data/`` holds our own three sets: harmful requests, harmless ones (most of them matched to a
harmful one in form and length, see the ``pair`` key), and harmless ones that sound alarming.
"""

from safesteer.prompts.load import Prompt, load_prompts
from safesteer.prompts.readers import PROMPT_SETS
from safesteer.prompts.splits import PromptSet, load_prompt_set, load_prompt_sets

__all__ = [
    "PROMPT_SETS",
    "Prompt",
    "PromptSet",
    "load_prompt_set",
    "load_prompt_sets",
    "load_prompts",
]
