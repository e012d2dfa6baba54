"""Chat templates in the styles in which models think, written for the tests."""

from __future__ import annotations

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

_TURNS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}BLOCK{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
_SHOWN = "<think>\n{{ m.get('reasoning_content', '') }}\n</think>\n\n"
_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\nEND{% endif %}"
_OFF = "{% if not enable_thinking | default(true) %}<think>\n\n</think>\n\n{% endif %}"

# The template closes the block if told so; else the model opens it itself.
SWITCHED = (_TURNS + _PROMPT).replace("BLOCK", _SHOWN).replace("END", _OFF)
# The same, but thoughts are never shown.
SILENT = (_TURNS + _PROMPT).replace("BLOCK", "").replace("END", _OFF)
# The prompt always opens the block, and thoughts are never shown.
OPENED = (
    (_TURNS + _PROMPT)
    .replace("BLOCK", "")
    .replace("m['content']", "m['content'].split('</think>')[-1]")
    .replace("END", "<think>\n")
)
# The model never thinks.
PLAIN = (_TURNS + _PROMPT).replace("BLOCK", "").replace("END", "")
# Channels, of control tokens alone: thoughts in one message, the answer in the next.
CHANNELS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}"
    "{% if m['role'] == 'assistant' %}"
    "{% if m.get('thinking') %}<|channel|>analysis<|message|>{{ m['thinking'] }}<|end|>"
    "<|im_start|>assistant{% endif %}<|channel|>final{% endif %}"
    "<|message|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)


def make_thinking(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    """Give a tokenizer the template and its tags, as models have them."""
    tags = [("<think>", False), ("</think>", False)]
    if "<|channel|>" in template:
        tags = [(tag, True) for tag in ("<|channel|>", "<|message|>", "<|end|>")]
    tokenizer.add_tokens([AddedToken(tag, special=special) for tag, special in tags])
    tokenizer.chat_template = template
    return tokenizer
