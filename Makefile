# make demo   fit the demonstration model into 110 MB, prove the bundle, answer a question
# make test   everything that must hold: ruff, mypy, pytest
# make figures DATA=DIR   the figures in README from the text files in DIR (README names them)
#
# All of them make .venv and install into it what is needed. PYTHON names the interpreter to start from; TORCH_ARGS goes
# to the pip call that installs torch, for instance an index that holds the CPU build where the default brings CUDA.

PYTHON ?= python3
TORCH_ARGS ?=
OUT ?= out
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

# A strict editable install links files one by one, so a file that is new or gone means linking again.
SOURCES := $(sort $(shell find edge_svd export kernels runtime recipes -name '*.py' -o -name '*.toml' -o -name 'py.typed' -o -path '*/report/front_page.*' -o -name 'trellis_codes.json'))

# The rooms at the top of the repository are found through the installation only, never through the current folder.
export PYTHONSAFEPATH := 1

.PHONY: demo test figures install clean FORCE

demo: install
	$(BIN)/edge-svd fit smollm2-demo --recipe smollm2-demo-110mb -o $(OUT)/demo --force
	$(BIN)/edge-svd verify $(OUT)/demo
	$(BIN)/edge-svd run $(OUT)/demo --chat --prompt "What is the capital of Japan?" --max-new-tokens 48

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(VENV) && $(BIN)/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache
	OMP_NUM_THREADS=1 $(BIN)/pytest tests --ignore=tests/end_to_end -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
	test ! -d tests/end_to_end || $(BIN)/pytest tests/end_to_end

figures: install
	@test -n "$(DATA)" || { echo "make figures needs DATA=DIR, the folder that holds the text files README names." >&2; exit 2; }
	$(BIN)/python benchmarks/figures.py --data "$(DATA)"

install: $(VENV)/linked

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "edge-svd needs Python 3.11 or newer, and '$(PYTHON)' is not: name another one with make PYTHON=python3.12." >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || \
		{ echo "'$(PYTHON) -m venv' failed: install the venv module (python3-venv on Debian and Ubuntu)." >&2; exit 1; }
	@touch $@

# torch first, on its own: it is the one large download, and TORCH_ARGS must not reach the other packages.
$(VENV)/installed: $(VENV)/python pyproject.toml setup.py constraints.txt
	$(PIP) install -c constraints.txt $(TORCH_ARGS) torch
	$(PIP) install -c constraints.txt 'setuptools>=77' -e '.[compress,optimum,genai,dev]' --config-settings editable_mode=strict
	@touch $@

$(VENV)/sources: FORCE | $(VENV)/python
	@echo "$(SOURCES)" | cmp -s - $@ || echo "$(SOURCES)" > $@

$(VENV)/linked: $(VENV)/installed $(VENV)/sources
	@$(PIP) install --no-deps --no-build-isolation -e . --config-settings editable_mode=strict
	@touch $@

clean:
	rm -rf $(VENV) build out .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
