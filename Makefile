# Everything starts here, and everything sets itself up: a machine needs Python >= 3.11, make and a package registry.
# Set PYTHON=/path/to/python3 to choose the interpreter; nothing is installed outside .venv.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin

# A checkout that was copied or moved carries a .venv that points elsewhere; forget its stamps.
ifneq ($(shell cat .venv/.made-for 2>/dev/null),$(shell pwd -P))
$(shell rm -f .venv/.local .venv/.dev)
endif

.PHONY: help
help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: .venv/.local ## Start a server with a local model and let an agent do a job on it.
	$(BIN)/corral demo

.PHONY: test
test: .venv/.dev ## Run all tests. Give pytest options with ARGS='-k name'.
	$(BIN)/python -m pytest $(ARGS)

.PHONY: test-docker
test-docker: .venv/.dev ## Run the sandboxes' tests in containers; as root, start Debian's engine for them.
	@ARGS='$(ARGS)' scripts/test-docker

.PHONY: crash
crash: .venv/.dev ## Kill any process 500 times at random, and run the other crash tests.
	CORRAL_TEST_KILLS=$${CORRAL_TEST_KILLS:-500} $(BIN)/python -m pytest tests/crash $(ARGS)

.PHONY: check
check: .venv/.dev ## Check format, lint, types, architecture and docs.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest --quiet tests/test_architecture.py tests/test_docs.py

.PHONY: bench
bench: .venv/.dev ## Measure: appends, streams, turns, memory.
	$(BIN)/python tests/benchmarks/run.py $(ARGS)

.PHONY: format
format: .venv/.dev ## Format, apply safe lint fixes, and write docs/settings.md anew.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python scripts/settings_doc.py

.PHONY: requirements
requirements: .venv/.dev ## Pin the newest allowed versions into requirements/*.txt.
	UV=$$(command -v $(BIN)/uv || command -v uv) scripts/lock --upgrade

.PHONY: clean
clean: ## Remove everything make has made here; sessions and settings elsewhere stay.
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis dist
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.local: requirements/local.txt pyproject.toml scripts/setup
	@scripts/setup local

.venv/.dev: requirements/dev.txt pyproject.toml scripts/setup
	@scripts/setup dev
