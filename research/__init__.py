"""Scripts of single studies, whose results are in the log beside them."""
