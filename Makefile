# Two commands set everything up on a machine with Python, git and make: `make demo`, `make test`.
#
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu make demo    the smaller CPU build of torch
#   make demo IMAGES=folder LABELS="polyp,instrument"             your own images

PYTHON ?= python3
VENV := .venv
LABEL_STUDIO_VENV := .venv-label-studio
BIN := $(VENV)/bin
TORCH_INDEX ?=
IMAGES ?=
LABELS ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo demo-check test lint types unit integration e2e bench bench-full docs pictures install browser clean

demo: install
	$(BIN)/medsam3 demo $(if $(IMAGES),--images "$(IMAGES)") $(if $(LABELS),--labels "$(LABELS)")

demo-check: install
	$(BIN)/medsam3 demo --check $(if $(IMAGES),--images "$(IMAGES)") $(if $(LABELS),--labels "$(LABELS)")

test: lint types unit integration e2e

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

unit: install
	$(BIN)/pytest tests/unit -n 2

integration: install
	$(BIN)/pytest tests/integration -n 2

e2e: install browser
	$(BIN)/pytest tests/e2e

bench: install
	$(BIN)/python -m tests.perf.bench

bench-full: install
	$(BIN)/python -m tests.perf.bench_full

# The tables that are made from the code.
docs: install
	$(BIN)/python docs/reference.py

# The README's strip of pictures, from a real demo in a real browser (about five minutes).
pictures: install browser
	$(BIN)/python docs/pictures.py

install: $(VENV)/.installed $(LABEL_STUDIO_VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Setting up $(VENV): torch and what the backend needs (several minutes the first time)"
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11 ...')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet --index-url $(TORCH_INDEX) torch==2.14.1 torchvision==0.29.1)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo,postgres,s3,simulate,test]"
	touch $@

$(LABEL_STUDIO_VENV)/.installed: constraints-label-studio.txt
	@echo "Setting up $(LABEL_STUDIO_VENV): Label Studio pins older versions, so it has its own"
	test -x $(LABEL_STUDIO_VENV)/bin/python || $(PYTHON) -m venv $(LABEL_STUDIO_VENV)
	$(LABEL_STUDIO_VENV)/bin/pip install --quiet --constraint constraints-label-studio.txt label-studio
	touch $@

# The end-to-end tests drive a browser. Where none is found, Debian's is installed.
browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ]; then sudo=; elif command -v sudo >/dev/null; then sudo=sudo; else \
	echo "No Chromium or Chrome is installed, and installing it needs root: install chromium, then run again." >&2; exit 1; fi; \
	if ! command -v apt-get >/dev/null; then \
	echo "No Chromium or Chrome is installed: install one with your package manager, then run again." >&2; exit 1; fi; \
	echo "Installing Debian's package chromium for the end-to-end tests ($${sudo:-as root})"; \
	$$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends chromium >/dev/null

clean:
	rm -rf .demo .cache .pytest_cache .mypy_cache .ruff_cache build dist
