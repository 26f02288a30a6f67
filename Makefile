# make demo: cross-validate on the synthetic phantom and end with a report; make check: style, types, imports and the fast tests;
# make test: all tests; make bench: speed against the programs registration is done with today (DATA=PATH of PROMISE12, else the
# phantom). Each sets up all it needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# where a machine sets it, each of the hundred processes that the tests start would compile the package anew
unexport PYTHONDONTWRITEBYTECODE
READY := $(VENV)/.ready

.PHONY: demo check test coverage bench lint types contract docs package try clean

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt -e ".[dev]"
	-$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib
	touch $(READY)

demo: $(READY)
	$(BIN)/oasis-monai demo

# the tests, by two processes that take each other's work; TESTS='-m slow' or TESTS=tests/utils for some of them
TESTS ?=
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

check: lint types contract
	$(PYTEST) -m "not slow"

test: $(READY)
	$(PYTEST) $(TESTS)

# what the tests run of the package; it takes two fifths more time. What commands run in processes of their own is not counted
coverage: $(READY)
	$(PYTEST) --cov --cov-report=term $(TESTS)

# an environment of its own: antspyx wants an older numpy, and no user of ours should need its peers
BENCH := .venv-bench

$(BENCH)/.ready: setup.cfg pyproject.toml benchmarks/constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -c benchmarks/constraints.txt -e . -r benchmarks/requirements.txt
	touch $@

bench: $(BENCH)/.ready
	$(BENCH)/bin/python -m benchmarks.speed.run $(if $(DATA),--data $(DATA)) $(if $(MODEL),--model $(MODEL)) $(BENCH_OPTIONS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# which package may import which, see pyproject.toml
contract: $(READY)
	$(BIN)/lint-imports --no-cache

types: $(READY)
	$(BIN)/mypy

# the documentation as a site, build/site/index.html; a warning is an error
docs: $(READY)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/python docs/site/assemble.py build/docs
	$(BIN)/zensical build --clean --strict

# what goes to users, in dist/: source and wheel, checked; and the recipe of the container
package: $(READY)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[release]"
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/hadolint Dockerfile

# the wheel as a new user gets it: an environment of its own (1 GB is fetched), an empty folder, the help and the demo. Then the source
# in its place: the same files and the same help
TRY := $(CURDIR)/build/try

try: package
	rm -rf $(TRY)
	mkdir -p $(TRY)/empty
	$(PYTHON) -m venv $(TRY)/env
	$(TRY)/env/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt dist/*.whl
	cd $(TRY)/empty && $(TRY)/env/bin/oasis-monai --help > $(TRY)/wheel.help && $(TRY)/env/bin/oasis-monai demo $(TRY_OPTIONS)
	$(TRY)/env/bin/python -m pip show -f oasis-monai | grep -v dist-info > $(TRY)/wheel.files
	$(TRY)/env/bin/python -m pip install -qq --disable-pip-version-check --no-deps --force-reinstall dist/*.tar.gz
	cd $(TRY)/empty && $(TRY)/env/bin/oasis-monai --help | cmp - $(TRY)/wheel.help
	$(TRY)/env/bin/python -m pip show -f oasis-monai | grep -v dist-info | cmp - $(TRY)/wheel.files
	test -s $(TRY)/empty/outputs/demo/report.html

clean:
	rm -rf $(VENV) $(BENCH) build dist .cache *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
