"""The refusal direction: means, candidates and their scores, the choice by behaviour."""
