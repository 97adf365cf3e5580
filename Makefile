# make demo: a trained detector with its mAP and pictures.   make demo-loc: localizers and their table.   make test: the tests.
# Each sets up .venv by itself; a second call reuses it. PYTHON=python3.12 make demo takes another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# What is kept between runs stays in the clone.
export RESDET_CACHE := $(CURDIR)/$(VENV)/cache/resdet
export MPLCONFIGDIR := $(CURDIR)/$(VENV)/cache/matplotlib

.PHONY: demo demo-loc test slow lint docs clean

demo: $(STAMP)
	$(BIN)/python -m resdet.cli demo

demo-loc: $(STAMP)
	$(BIN)/python -m resdet.cli demo-loc

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The manual, in docs/_build/html/index.html.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# torch and torchvision come from one resolve. mmengine brings opencv-python beside albumentations' headless build; the
# headless one is put on top, because the other needs libGL, which servers lack.
$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed, this is " + sys.version)'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps opencv-python-headless
	$(BIN)/python -m resdet.cli
	touch $(STAMP)

clean:
	rm -rf $(VENV) work_dirs data/shapes data/shapes_loc
