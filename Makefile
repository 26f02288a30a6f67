# make demo: cross-validate on the synthetic phantom and end with a report; make test: the tests. Both set up all they need.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint types clean

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

demo: $(READY)
	$(BIN)/oasis-monai phantom hydra.run.dir=outputs/demo-data
	$(BIN)/oasis-monai experiment=demo hydra.run.dir=outputs/demo

# two processes: the pipeline's tests load every library there is, the oracles of the unit tests want a fresh one
PIPELINE := tests/test_crossval.py tests/test_cli.py tests/test_model.py tests/test_scans.py tests/test_atlases.py \
	tests/test_study.py tests/test_workers.py tests/test_bundle.py tests/test_download.py tests/test_faults.py \
	tests/test_planted.py tests/test_docs.py

test: $(READY)
	$(BIN)/python -m pytest $(PIPELINE)
	$(BIN)/python -m pytest $(PIPELINE:%=--ignore=%)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
