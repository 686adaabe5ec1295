# umbel: every command a newcomer needs. Each target does its own set-up; .venv and .umbel are reused.
export UMBEL_HOME ?= $(CURDIR)/.umbel
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
.DEFAULT_GOAL := help
.PHONY: help setup assets demo test check bench bench-training bench-methods bench-tuning bench-quantised bench-peers parity fresh bench-memory bench-compact bench-guesses bench-targets docs soak clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

.venv/ready: pyproject.toml constraints.txt scripts/install.sh
	PYTHON=$(PYTHON) sh scripts/install.sh .venv dev --editable
	@touch $@

setup: .venv/ready  ## Make .venv with everything the other targets need

assets: setup  ## Fetch the real backbone and the datasets, once
	@$(BIN)/umbel pull backbone smollm2-135m-instruct --quiet && echo "backbone smollm2-135m-instruct is there"
	@for name in tweets-sentiment pronounce drug-reviews; do \
	  $(BIN)/umbel pull dataset $$name --quiet && echo "dataset $$name is there" || exit 1; done
	@echo 'to use them in this shell: . .venv/bin/activate; export UMBEL_HOME="$(UMBEL_HOME)"'

demo: assets  ## Train two adapters on real data, serve both in one batch, compare, promote
	@PATH="$(BIN):$$PATH" $(BIN)/python examples/demo.py

test: assets  ## Pass every test that CI runs
	$(BIN)/python -m pytest -m 'not soak'

check: setup  ## Lint, types, import direction, Dockerfiles
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/hadolint docker/serve.Dockerfile docker/train.Dockerfile
	$(BIN)/python -m benchmarks.docs --check
	@sh scripts/no_stray_init.sh

soak: assets  ## The long tests: an hour of churn (UMBEL_SOAK_MINUTES=2: two minutes)
	$(BIN)/python -m pytest -m soak

bench: assets  ## Measure umbel beside HF + PEFT, write docs/benchmarks/ (ARGS=--short: ten minutes)
	$(BIN)/python -m benchmarks.run $(ARGS)

bench-peers: assets  ## The same beside vLLM and llama.cpp, each in its own environment (ARGS=--short: ten minutes)
	@PYTHON=$(PYTHON) sh scripts/peers.sh
	$(BIN)/python -m benchmarks.peers.run $(ARGS)

parity: setup  ## Compare every method and output head with PEFT, print the matrix
	$(BIN)/python -m benchmarks.parity

bench-methods: assets  ## Train every method beside HF + PEFT, about an hour; goes on where it stopped
	$(BIN)/python -m benchmarks.methods $(ARGS)

bench-memory: assets  ## Measure kept beginnings of prompts and early admission, about three minutes
	$(BIN)/python -m benchmarks.memory $(ARGS)

bench-targets: assets  ## Measure the engine's own targets, print the table (ARGS=--short: ten minutes)
	$(BIN)/python -m benchmarks.targets.run $(ARGS)

fresh: assets  ## Measure how much an untrained adapter of each method changes SmolLM2's logits
	$(BIN)/python -m benchmarks.fresh

bench-compact: assets  ## Measure weights in 12 bits beside the same in 16, to the same tokens; three minutes
	$(BIN)/python -m benchmarks.compact $(ARGS)

bench-guesses: assets  ## Measure rows that guess ahead beside rows that do not, to the same tokens; two minutes
	$(BIN)/python -m benchmarks.guesses $(ARGS)

bench-training: assets  ## Measure training beside HF + PEFT and itself (ARGS=--short: 20 minutes)
	$(BIN)/python -m benchmarks.training $(ARGS)

bench-tuning: assets  ## Full, partial and head-only fine-tuning beside adapters; goes on where it stopped
	$(BIN)/python -m benchmarks.tuning $(ARGS)

bench-quantised: assets  ## Measure int8, int4 and nf4 linears beside bf16: quality, bytes, speed; three minutes
	$(BIN)/python -m benchmarks.quantised $(ARGS)

docs: setup  ## Regenerate the generated pages of docs/
	$(BIN)/python -m benchmarks.docs

clean:  ## Remove .venv (the home .umbel stays)
	rm -rf .venv
