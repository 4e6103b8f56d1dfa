# Python 3.11 or newer and make are all that these targets need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help train examples test lint bench gpu-check clean

help:
	@echo "make train      train on real data (breast cancer), end with a model and a picture in out/"
	@echo "make examples   three pictures of what training does, in out/"
	@echo "make test       run all tests"
	@echo "make lint       formatting, lint and types"
	@echo "make bench      times and memory on the CPU beside other libraries, and the README from them"
	@echo "make gpu-check  all that needs a GPU; with the PYTHON at hand, nothing is installed"

$(VENV)/.core: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[plot]'
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,plot,bench]'
	@touch $@

train: $(VENV)/.core
	@mkdir -p out
	$(BIN)/xpmlp train breast_cancer --hidden 64,32 --activation sigmoid,relu --dropout 0,0.2 \
	    --loss squared_error --optimizer adam:beta_2=0.99 --lr 0.05 --batch-size 64 --epochs 100 \
	    --scale minmax --test-size 0.3 --split-seed 101 --seed 0 --device auto \
	    --out out/model.safetensors --plot out/loss.png

examples: $(VENV)/.core
	$(BIN)/python examples/loss_curve.py
	$(BIN)/python examples/decision_boundary.py
	$(BIN)/python examples/gradient_flow.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	set -e; for program in cpu predict memory scaling import readme; do \
	    $(BIN)/python -m bench $$program; \
	done

gpu-check:
	$(PYTHON) -m bench.gpu_check

clean:
	rm -rf $(VENV) out
