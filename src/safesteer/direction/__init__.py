"""The refusal direction: mean activations, candidates, their scores, the choice by behavior."""
