# Every target a person or CI needs. PYTHON chooses the interpreter of `make install`.
PYTHON ?= python3
BIN := .venv/bin
M2KIT := $(BIN)/m2kit
DIGITS := examples/digits
EMOJI := examples/emoji

.PHONY: help install demo demo-digits demo-train demo-evaluate test test-hostile test-oracles \
  test-ray test-browser test-gpu check mypy docs bench bench-entropy bench-export bench-plans clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/.installed  ## make .venv with everything for development on a CPU

.venv/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install  ## export, build and draw emoji from the shipped checkpoint
	$(M2KIT) export --ckpt $(EMOJI)/emoji.pt -o build/demo/emoji.bundle
	$(M2KIT) build-engine build/demo/emoji.bundle -o build/demo/emoji.engine
	$(M2KIT) generate --engine build/demo/emoji.engine -n 12 --seed 1 -o build/demo/emoji.png

demo-digits: install  ## the same of digits, the fast model that tests use
	$(M2KIT) export --ckpt $(DIGITS)/digits.pt -o build/demo/digits.bundle
	$(M2KIT) build-engine build/demo/digits.bundle -o build/demo/digits.engine
	$(M2KIT) generate --engine build/demo/digits.engine --seed 1 -o build/demo/digits.png

demo-train: install  ## train the digits' checkpoint again, from nothing
	rm -rf build/train
	$(M2KIT) train tokenizer --seed 0 -o build/train/tokenizer
	$(M2KIT) train ar --seed 0 --tokenizer build/train/tokenizer/tokenizer.pt -o build/train/ar

demo-evaluate: demo-digits  ## are the digits digits, and not copies?
	$(BIN)/python examples/evaluate.py build/demo/digits.engine

test: install  ## the whole suite, in a process for each core
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test-hostile: install  ## every forged folder and hostile command, of which make test runs a choice
	$(BIN)/python -m pytest tests/hostile --all-cases

test-oracles: install build/oracles  ## numbers against other packages', in a folder of their own
	PYTHONPATH=build/oracles:src $(BIN)/python tests/oracles/lpips_oracle.py
	PYTHONPATH=build/oracles:src $(BIN)/python tests/oracles/inception_oracle.py
	PYTHONPATH=build/oracles:src $(BIN)/python tests/oracles/i3d_oracle.py

test-ray: install build/ray  ## large sets on Ray, which is large itself, in a folder of its own
	PYTHONPATH=$(CURDIR)/build/ray:$(CURDIR)/src $(BIN)/python -m pytest tests/cli/test_ray_sampling.py

build/ray: Makefile constraints.txt
	rm -rf $@ $@.part
	$(BIN)/python -m pip install --quiet -c constraints.txt --target $@.part 'ray[data]'
	mv $@.part $@

build/oracles: Makefile
	rm -rf $@ $@.part
	$(BIN)/python -m pip install --quiet --no-deps --target $@.part \
	  lpips==0.1.4 pytorch-fid==0.3.0 torch-fidelity==0.4.0 torchvision cd-fvd==0.1.1
	mv $@.part $@

test-gpu: install  ## what needs an NVIDIA GPU (with onnxruntime-gpu in place of onnxruntime)
	$(BIN)/python -m pytest -m gpu -rs

test-browser: build/browser  ## the server's page in a headless Chromium, which it installs
	$(BIN)/python -m pytest tests/browser --browser build/browser --durations 3

build/browser: tests/browser/install.py | install
	$(BIN)/python tests/browser/install.py $@
	touch $@

check: install mypy  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

mypy: install  ## types alone
	MYPYPATH=src $(BIN)/mypy --config-file setup.cfg -p m2kit

docs: install  ## write docs/cli.md from the commands' own help
	$(BIN)/python docs/cli.py

bench: install  ## the table of docs/performance.md: PRESET=ar-b, random weights, kept in build/sizes
	$(BIN)/python examples/sizes/bench.py $(or $(PRESET),ar-b) build/sizes

bench-entropy: install  ## time and memory of each form of the entropy term of 2^18 codes
	$(BIN)/python -m m2kit.training.bench.entropy

bench-export: install  ## time, memory and disk of exporting a published size: PRESET=ar-l
	$(BIN)/python examples/sizes/measure.py $(or $(PRESET),ar-b) build/sizes

bench-plans: install  ## the same, and its half-precision TensorRT-RTX plans, built without a GPU
	$(BIN)/python examples/sizes/measure.py $(or $(PRESET),ar-b) build/sizes --plans

clean:  ## remove build
	rm -rf build
