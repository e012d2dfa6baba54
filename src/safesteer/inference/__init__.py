"""Inference with the variants of a run: its base, its aligned model and its teacher."""

# In the order in which results show them. Here, and not in variant.py, which imports torch.
VARIANTS = {"base": "the base", "aligned": "the aligned model", "teacher": "the teacher"}
