# The project's commands. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup book pdf chapter sweep study test test-models lab workload bench peers clean

# PYTHON, PROFILE, CHAPTER and PARAMS reach the recipes through the environment, so that quotes in them survive.
export PYTHON PROFILE CHAPTER PARAMS NAME FILE

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## make .venv from requirements.lock (PYTHON=python3.12 chooses the Python)
	@sh ./setup.sh

book: setup  ## execute and render the book; only what changed is executed (PROFILE=fast for small sizes)
	@.venv/bin/python book/build.py book --profile "$${PROFILE:-full}"

pdf: setup  ## print the book to one PDF with bookmarks; needs Chromium or Chrome, no LaTeX (PROFILE=fast)
	@.venv/bin/python book/build.py pdf --profile "$${PROFILE:-full}"

chapter: setup  ## run one chapter with other parameters: CHAPTER=<name> PARAMS="n_rounds=20000 committee=7"
	@.venv/bin/python book/build.py chapter --profile "$${PROFILE:-full}" -- "$$CHAPTER" "$$PARAMS"

sweep: setup  ## run one chapter over the parameter sets of a file: FILE=book/sweeps/example.toml
	@.venv/bin/python book/sweep.py --profile "$${PROFILE:-full}" -- "$$FILE"

study: setup  ## begin a notebook of your own in book/studies: NAME=my-network
	@.venv/bin/poq study -- "$$NAME"

test: setup  ## lint, build and check a fast book, run the tests
	@.venv/bin/python -m tests

test-models: setup  ## run the tests that need neural models, in .venv-models (several gigabytes)
	@sh tests/models/run.sh

lab: setup  ## open the notebooks in JupyterLab
	@cd book && exec ../.venv/bin/jupyter-lab $$(test "$$(id -u)" -ne 0 || echo --allow-root)

workload: setup  ## make the shipped score log again: real text, systems and evaluators
	@.venv/bin/poq workload

bench: setup  ## measure the engine against plain Python, numpy and other libraries
	@.venv/bin/python -m tests.benchmarks

peers: setup  ## measure other libraries on the same rounds, in .venv-peers (BYZFL=1 adds ByzFL: several gigabytes)
	@sh tests/peers/run.sh

clean:  ## remove what was built (never a study, a result made by hand, or .venv)
	@rm -rf book/_build build .pytest_cache .ruff_cache .hypothesis
	@find poq book tests -name __pycache__ -type d -prune -exec rm -rf {} +
