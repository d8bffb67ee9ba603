# `make demo` and `make test` set up everything they need in a virtual environment of their own.
PYTHON ?= python3
VENV ?= .venv
OLDEST_VENV ?= .venv-oldest
DEMO_VENV ?= .venv-demo
PYTEST_OPTIONS ?= -n 2 -q
BENCH_OPTIONS ?=
# on the lowest versions: the core tests of .ci/versions.py, and those of what other packages do for the command
OLDEST_TESTS = $(addprefix modeling_tests/,$(addprefix cli/,test_answering.py \
  test_doctor.py test_results.py) ram/test_pipeline_ram.py ram/test_modeling_ram.py $(addsuffix .py,$(addprefix test_, \
  parity modeling_lion modeling_lion_t5 pipelines processing_lion loading trainer inference image_processing_lion upstream self_check)))
INSTALL = -m pip install --quiet --no-compile --constraint
BIN = $(VENV)/bin/python

.PHONY: environments demo test test-long test-oldest test-versions versions-page test-demo lint format common-suite bench docs release-check clean

demo: $(VENV)/.ready
	$(BIN) -m examples.answers demo

test: $(VENV)/.ready
	$(BIN) -m pytest $(PYTEST_OPTIONS)

# what starts many processes and takes too long for CI
test-long: $(VENV)/.ready
	$(BIN) -m pytest -m long -q

test-oldest: $(OLDEST_VENV)/.ready
	$(OLDEST_VENV)/bin/python -m pytest $(PYTEST_OPTIONS) $(OLDEST_TESTS)

# the releases of transformers between the lowest and the newest, on the lowest versions of everything else
test-versions: $(OLDEST_VENV)/.ready
	$(OLDEST_VENV)/bin/python .ci/versions.py

# all core tests on all releases, and the table of docs/versions.md
versions-page: $(OLDEST_VENV)/.ready
	$(OLDEST_VENV)/bin/python .ci/versions.py --write

# Gradio takes no Pillow 13, so the demo's tests have an environment of their own; those in a browser need a Chromium
test-demo: $(DEMO_VENV)/.ready
	$(DEMO_VENV)/bin/python -m pytest -q modeling_tests/demo

lint: $(VENV)/.ready-dev
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .
	$(BIN) -m mypy

format: $(VENV)/.ready-dev
	$(BIN) -m ruff check --fix .
	$(BIN) -m ruff format .

common-suite: $(VENV)/.ready
	$(BIN) modeling_tests/upstream/run.py

# about 25 minutes on two cores that do nothing else; `make bench BENCH_OPTIONS=--quick` is a smoke
bench: $(VENV)/.ready
	$(BIN) -m benchmarks.speed $(BENCH_OPTIONS)

docs: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN) -m mkdocs build --strict

release-check: $(VENV)/.ready-release
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	rm -rf dist build/installed
	$(BIN) -m build --outdir dist
	$(BIN) -m twine check --strict dist/*
	$(BIN) .ci/check_release.py dist
	$(PYTHON) -m venv build/installed
	build/installed/bin/python $(INSTALL) .ci/constraints.txt dist/*.whl
	build/installed/bin/python .ci/check_release.py --installed

clean:
	rm -rf $(VENV) $(OLDEST_VENV) $(DEMO_VENV) .cache build dist

# all of them at once with `make --jobs 3 environments`
environments: $(VENV)/.ready-docs $(OLDEST_VENV)/.ready $(DEMO_VENV)/.ready

$(VENV)/.ready: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN) $(INSTALL) .ci/constraints.txt --editable ".[test,scale]"
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN) $(INSTALL) .ci/constraints.txt --editable ".[dev]"
	touch $@

$(VENV)/.ready-docs: $(VENV)/.ready-dev
	$(BIN) $(INSTALL) .ci/constraints.txt --editable ".[docs]"
	touch $@

$(VENV)/.ready-release: $(VENV)/.ready
	$(BIN) $(INSTALL) .ci/constraints.txt --editable ".[release]"
	touch $@

$(OLDEST_VENV)/.ready: pyproject.toml .ci/constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python $(INSTALL) .ci/constraints-oldest.txt --editable ".[test,supervision]"
	touch $@

$(DEMO_VENV)/.ready: pyproject.toml .ci/constraints-demo.txt
	$(PYTHON) -m venv $(DEMO_VENV)
	$(DEMO_VENV)/bin/python $(INSTALL) .ci/constraints-demo.txt --editable ".[demo]" playwright pytest
	touch $@
