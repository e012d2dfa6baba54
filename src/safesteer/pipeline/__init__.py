"""The whole job: preflight, stages, evaluation and report of a run."""
