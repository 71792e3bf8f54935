# Two commands: `make demo` and `make test`. Everything they need goes into .venv.
PYTHON ?= python3
VENV ?= .venv
# Where to find a CPU build of torch when your package index offers only CUDA builds, e.g. TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# Extra words for the command behind the target, e.g. make demo ARGS='--seed 3'
ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
TORCH_FLAGS := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
SOURCES := pyproject.toml constraints.txt hatch_build.py $(wildcard sandboxes/box/*.c sandboxes/box/*.h)

.PHONY: demo test check coverage bench up clean

demo: $(VENV)/.installed
	$(BIN)/gymsmith demo $(if $(QUICK),--quick) $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Which lines of the trainer its tests run, in all processes that they start: the engine and RL, then the core.
coverage: $(VENV)/.installed-dev
	rm -rf build/coverage
	$(BIN)/coverage run -m pytest -q tests/trainer $(ARGS)
	$(BIN)/coverage combine --quiet
	rm -f build/coverage/data.*  # what processes that were killed left half written
	$(BIN)/coverage report --include='trainer/engine/*,trainer/rl/*'
	$(BIN)/coverage report --omit='trainer/engine/*,trainer/rl/*' --fail-under=90

bench: $(VENV)/.installed-dev
	$(BIN)/gymsmith bench $(or $(NAME),loop) $(ARGS)

up: $(VENV)/.installed
	$(BIN)/gymsmith up $(ARGS)

clean:
	rm -rf $(VENV) sandboxes/_box build dist

# The pip that comes with Debian 12 takes many minutes to resolve what a newer one resolves in seconds.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --upgrade 'pip>=25'

$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	@echo "installing into $(VENV) (the first time takes a few minutes)"
	$(PIP) 'torch~=2.13.0' numpy $(TORCH_FLAGS)
	$(PIP) --editable '.[train,sandbox]'
	@touch $@

# Everything is pinned, so there is nothing to resolve; a resolver takes minutes over the whole set.
$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing what the tests need"
	$(PIP) --no-deps --requirement constraints.txt
	@touch $@
