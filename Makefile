# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/portraits

.PHONY: demo test test-processors test-faults test-slow lint docs build/typed clean

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Without an NVIDIA driver, nothing uses the CUDA libraries that torch brings on Linux.
define HINT
if [ "$$(uname -s)" = Linux ] && [ -z "$$PIP_EXTRA_INDEX_URL$$PIP_CONSTRAINT" ] && ! command -v nvidia-smi > /dev/null; \
then echo "no NVIDIA driver: docs/install.md says how to install without 4 GB of CUDA libraries"; fi
endef

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@$(HINT)
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet -e ".[test]"
	touch $@ $(VENV)/.installed

$(VENV)/.docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet -e ".[docs]"
	touch $@ $(VENV)/.installed

# Align, invert, segment, refine and edit five real portraits on the CPU.
demo: $(VENV)/.installed
	$(BIN)/dhr-batch run --dataset portraits --gpus 0 --out $(RUN) --yes
	@printf '\nNow a photograph of your own:\n    %s\n' "$(BIN)/dhr-batch edit photo.jpg --edit smile=2 --out edited"

test: $(VENV)/.test
	$(BIN)/dhr-batch models pull --all
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Run the tests natively and with the instructions of other processors, which round sums differently.
test-processors: $(VENV)/.test
	$(BIN)/dhr-batch models pull --all
	$(BIN)/python -m dhr_batch.tests.processors -n 2 --dist loadfile

# Kill drivers, workers and machines at every point of the commit protocol, let stores and disks fail, and
# damage files of every kind that others write.
test-faults: $(VENV)/.test
	$(BIN)/python -m pytest -m "slow or not slow" -s --durations=0 tests/faults

# Run all tests that `make test` leaves out.
test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow -s --durations=0

lint: $(VENV)/.test build/typed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/typed && MYPYPATH=. ../../$(BIN)/mypy -p dhr_batch

# mypy and mkdocstrings do not follow editable installs, so they need a folder with the name of the package.
build/typed:
	mkdir -p build/typed/dhr_batch
	ln -sfn $(addprefix ../../../,__init__.py __main__.py version.py py.typed cli.py benchmarks configs \
		fitting pipeline stages) build/typed/dhr_batch/

# Build the site into build/site. A warning, such as a link to a page or section that does not exist, is an error.
docs: $(VENV)/.docs build/typed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --clean
	@echo 'build/site/index.html; with a search: python3 -m http.server -d build/site'

clean:
	rm -rf build dhr_batch.egg-info
