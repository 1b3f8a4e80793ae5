# tersor: `make compress deploy` and `make test` are all a newcomer needs; `make help` lists the rest.
PYTHON ?= python3
# cpu or gpu: which ONNX Runtime goes into .venv
EXTRA ?= cpu
RECIPE ?= recipes/digits.yaml
DATA ?=
SET ?=
NAME = $(shell sed -n 's/^name: *\([^ #]*\).*/\1/p' "$(RECIPE)")
BUNDLE ?= dist/$(NAME)

BIN := .venv/bin
READY := .venv/.ready-$(EXTRA)
DEV := .venv/.ready-$(EXTRA)-dev
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e
OPTIONS = $(if $(DATA),--data "$(DATA)") $(foreach s,$(SET),--set '$(s)')

STUDY ?= studies/sparsity-sweep.yaml
REPORT ?= r1

.PHONY: help setup compress deploy benchmark report verify study table profile verify-results test test-cluster test-gpu lint clean
.NOTPARALLEL:
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-15s %s\n", $$1, $$2}'
	@echo "  variables: RECIPE=recipes/digits.yaml DATA=path SET='name.setting=value ...' BUNDLE=dist/name EXTRA=cpu|gpu"

setup: $(DEV) ## make .venv and install everything into it (what is needed comes by itself on first use)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"tersor needs Python 3.11 or newer; $(PYTHON) is {v.major}.{v.minor}. Use make PYTHON=python3.12 ...")'
	@echo "setting up .venv (once; downloads a few GB unless cached)" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@$(INSTALL) '.[$(EXTRA),compress]'
	@touch $@

$(DEV): $(READY)
	@$(INSTALL) '.[$(EXTRA),compress,track,cluster,dev]'
	@touch $@

compress: $(READY) ## train, prune, share and pack (RECIPE, DATA, SET)
	@$(BIN)/tersor compress $(RECIPE) $(OPTIONS)

deploy: $(READY) ## make the checked bundle dist/<name> of a finished run (RECIPE, DATA, SET)
	@$(BIN)/tersor deploy $(RECIPE) $(OPTIONS)

benchmark: $(READY) ## time the ONNX files of a bundle again (BUNDLE)
	@$(BIN)/tersor benchmark $(BUNDLE)/baseline.onnx $(filter-out %/baseline.onnx,$(wildcard $(BUNDLE)/*.onnx))

report: $(READY) ## write report.html of a bundle anew (BUNDLE)
	@$(BIN)/tersor report $(BUNDLE)

verify: $(READY) ## re-check every claim of a bundle from its files (BUNDLE, DATA)
	@$(BIN)/tersor verify $(BUNDLE) $(if $(DATA),--data "$(DATA)")

study: $(READY) ## run a study (STUDY=studies/x.yaml, DATA, FAST=1)
	@$(BIN)/tersor study $(STUDY) $(if $(DATA),--data "$(DATA)") $(if $(FAST),--fast)

table: $(READY) ## make a table of docs/ anew (REPORT=r1|r2|r3|r5|r1-bits|r4-bits|networks, DATA, FAST=1)
	@$(BIN)/tersor table $(REPORT) $(if $(DATA),--data "$(DATA)") \
	  $(if $(filter networks,$(REPORT)),--beside benchmarks/torch-pruning-networks.json) $(if $(FAST),--fast,--out docs/table-$(REPORT).md)

profile: $(READY) ## latency against width of a recipe's layers on this machine (RECIPE, DATA)
	@$(BIN)/tersor profile $(RECIPE) $(if $(DATA),--data "$(DATA)")

verify-results: $(READY) ## measure bytes and accuracy of results/ again, without training (DATA)
	@$(BIN)/tersor kept check $(if $(DATA),--data "$(DATA)")

test: $(DEV) ## run all tests, on up to four cores
	@$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

test-cluster: $(DEV) ## run the tests that start a local Ray cluster (idle machine, a few minutes)
	@$(BIN)/python -m pytest -m cluster

test-gpu: $(DEV) ## run the tests that need an NVIDIA GPU (EXTRA=gpu)
	@$(BIN)/python -c 'import sys; from tersor.export.timing.providers import why_not; why = why_not("cuda"); sys.exit(why and f"no test can run: {why}")'
	@$(BIN)/python -m pytest -m gpu

lint: $(DEV) ## style, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy -p tersor

clean: ## remove runs, bundles and caches; .venv stays
	@rm -rf runs dist .pytest_cache .ruff_cache .mypy_cache .hypothesis build
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
