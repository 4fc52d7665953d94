# SPDX-License-Identifier: BSD-3-Clause
# `make` lists the targets. `demo` and `test` are the two commands of the README, word for word.

VENV := .venv
# Of `gpu` and `gpu-full`: an interpreter that already has torch with CUDA, and where results go. A
# tree without .git is told its commit by COMMIT=.
PYTHON ?= python3
RESULTS ?= benchmarks/results

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

demo: ## train the slim SSD300 on generated scenes and draw what it finds (CPU, 3 minutes)
	python3 -m venv .venv && .venv/bin/pip install torch && .venv/bin/pip install -e '.[train]' -c constraints.txt && .venv/bin/ssd-fast demo

test: ## run all tests, CI-sized
	python3 -m venv .venv && .venv/bin/pip install torch torchvision && .venv/bin/pip install -e '.[test,train]' -c constraints.txt && .venv/bin/python -m pytest

test-full: $(VENV)/tested ## run all tests with the large counts (an hour)
	$(VENV)/bin/python -m pytest --full

bench: $(VENV)/tested ## check every benchmark's results, then time it
	$(VENV)/bin/python -m pytest benchmarks
	$(VENV)/bin/python benchmarks/import_time.py

lint: $(VENV)/tools ## run every linter, change nothing
	.ci/lint $(VENV)/bin

format: $(VENV)/tools ## rewrite Python and C++ as the linters want them
	$(VENV)/bin/ruff check -q --fix-only .
	$(VENV)/bin/ruff format .
	git ls-files '*.cpp' '*.cu' '*.cuh' '*.h' | xargs $(VENV)/bin/clang-format -i

gpu: seen-gpu ## build, test, sanitize and time on a GPU machine with its own torch, no network (9 minutes)
	$(PYTHON) .ci/gpu.py --results $(RESULTS)

gpu-full: seen-gpu ## time everything on a GPU, nine minutes a run; run it until it says it is complete
	$(PYTHON) .ci/gpu.py --full --results $(RESULTS)

seen-gpu:
	@$(PYTHON) -c 'import sys, torch; torch.cuda.is_available() or sys.exit( \
	    "make gpu: %s with torch %s sees no GPU: nothing was built or checked" \
	    % (sys.executable, torch.__version__)); print(torch.cuda.get_device_name())'

ci: ## everything CI checks, on a fresh clone of HEAD (25 minutes)
	.ci/run

clean: ## remove what builds and runs leave behind, the environment included
	rm -rf $(VENV) build dist *.egg-info ssd_fast/_C*.so ssd-fast-demo .*_cache .hypothesis

$(VENV)/tested: constraints.txt pyproject.toml
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install torch torchvision
	$(VENV)/bin/pip install -e '.[test,train]' -c constraints.txt
	touch $@

$(VENV)/tools: $(VENV)/tested
	$(VENV)/bin/pip install -q -c constraints.txt $$(cat .ci/tools.txt)
	touch $@

.PHONY: help demo test test-full bench lint format gpu gpu-full seen-gpu ci clean
