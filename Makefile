# Two commands set everything up on a machine with Python, git and make: `make demo`, `make test`.
#
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu make demo    the smaller CPU build of torch
#   make demo IMAGES=folder LABELS="polyp,instrument"             your own images
#   make PYTHON=python3.12 demo                                   another Python than the newest

# Empty: the newest Python that works.
PYTHON ?=
VENV := .venv
LABEL_STUDIO_VENV := .venv-label-studio
BIN := $(VENV)/bin
TORCH_INDEX ?=
IMAGES ?=
LABELS ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo demo-check test lint types unit integration e2e bench bench-full bench-scale docs pictures \
	install install-test same-python browser clean

demo: install
	$(BIN)/medsam3 demo $(if $(IMAGES),--images "$(IMAGES)") $(if $(LABELS),--labels "$(LABELS)")

demo-check: install
	$(BIN)/medsam3 demo --check $(if $(IMAGES),--images "$(IMAGES)") $(if $(LABELS),--labels "$(LABELS)")

test: lint types unit integration e2e

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-test
	$(BIN)/mypy

unit: install-test
	$(BIN)/pytest tests/unit -n 2

integration: install-test
	$(BIN)/pytest tests/integration -n 2

e2e: install-test browser
	$(BIN)/pytest tests/e2e

bench: install-test
	$(BIN)/python -m tests.perf.bench

bench-full: install-test
	$(BIN)/python -m tests.perf.bench_full

# 100,000 tasks, four GPU workers, and a worker against its bare model: under twenty minutes.
bench-scale: install-test
	$(BIN)/python -m tests.perf.bench_scale

# The tables that are made from the code.
docs: install-test
	$(BIN)/python docs/reference.py

# The README's strip of pictures, from a real demo in a real browser (about five minutes).
pictures: install-test browser
	$(BIN)/python docs/pictures.py

install: same-python $(VENV)/.installed $(LABEL_STUDIO_VENV)/.installed

# An environment that is there keeps its Python, and another one is not taken for it in silence.
same-python:
	@if [ -n "$(PYTHON)" ] && [ -x $(BIN)/python ]; then \
	version="import sys; print(sys.version_info[:2])"; python=$$(sh find_python.sh "$(PYTHON)") || exit 1; \
	[ "$$($(BIN)/python -c "$$version")" = "$$($$python -c "$$version")" ] || \
	{ echo "$(VENV) was made with another Python than $(PYTHON): rm -r $(VENV) $(LABEL_STUDIO_VENV), then run again." >&2; exit 1; }; fi

# What only the tests need comes on top.
install-test: install $(VENV)/.installed-test

# Made by the Python that find_python.sh finds, before anything is downloaded.
define environment
@if [ -x $(1)/bin/python ]; then sh find_python.sh $(1)/bin/python >/dev/null; \
else python=$$(sh find_python.sh "$(PYTHON)") && echo "Setting up $(1) with $$($$python --version): $(2)" && $$python -m venv $(1); fi
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call environment,$(VENV),torch and what the backend needs (several minutes the first time))
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet --index-url $(TORCH_INDEX) torch==2.14.1 torchvision==0.29.1)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo]"
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed tests/label_studio_sdk.txt
	@echo "Adding what the tests need to $(VENV)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo,postgres,s3,simulate,test]"
	$(BIN)/pip install --quiet --no-deps --requirement tests/label_studio_sdk.txt
	touch $@

$(LABEL_STUDIO_VENV)/.installed: constraints-label-studio.txt
	$(call environment,$(LABEL_STUDIO_VENV),Label Studio pins older versions and so has its own)
	$(LABEL_STUDIO_VENV)/bin/pip install --quiet --no-deps --requirement constraints-label-studio.txt
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
