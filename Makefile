# The habits. Every target sets up what it needs: a virtual environment in .venv, and as root the
# Debian packages that scripts/packages lists.

PYTHON ?= python3
BIN := .venv/bin

# Without root the tests run as root of a user namespace, where files can be given to other owners.
NAMESPACE := $(shell [ $$(id -u) -eq 0 ] || echo unshare --user --map-root-user --map-auto --mount)

.PHONY: demo test test-long check bench docs clean

demo: .venv/.installed ## a real image through the main job; IMAGE=FILE takes yours
	scripts/packages demo
	scripts/demo $(IMAGE)

test: .venv/.dev
	scripts/packages test
	$(NAMESPACE) $(BIN)/python -m pytest $(ARGS)

test-long: .venv/.dev
	scripts/packages test
	$(BIN)/pip install -q -e '.[fuzzing]' || echo "no atheris: nothing is searched for" >&2
	LAYERFS_LONG=1 $(NAMESPACE) $(BIN)/python -m pytest --timeout=14400 $(ARGS)

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layering.py

bench: .venv/.dev ## five minutes, report in build/benchmarks; ARGS="--full", "--help"
	scripts/packages bench
	$(BIN)/python -m benchmarks $(ARGS)

docs: .venv/.dev ## the reference of the library, as HTML in build/docs
	$(BIN)/pip install -q 'pdoc>=14'
	$(BIN)/pdoc --docformat restructuredtext --output-directory build/docs layerfs '!layerfs.cli'
	$(BIN)/python -m pytest -q tests/test_docs.py

.venv/.installed: pyproject.toml
	scripts/packages python
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e .
	touch $@

# pyfuse3 is built from source, with what scripts/packages installs; without it the tests over FUSE skip.
.venv/.dev: .venv/.installed
	scripts/packages test
	$(BIN)/pip install -q -e '.[dev]'
	$(BIN)/pip install -q -e '.[fuse]' || echo "no pyfuse3: nothing over FUSE is tested" >&2
	touch $@

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache
