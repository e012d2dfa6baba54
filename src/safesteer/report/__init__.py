"""Results of a run for people: report.html, the model card, and comparisons of runs."""
