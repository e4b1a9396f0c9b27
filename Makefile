# Every command that people and CI use. `make demo` and `make test` set everything up themselves.
.DEFAULT_GOAL := help
BIN := .venv/bin
SPEED ?= 1
# Most tests wait more than they compute: more than twice the two cores that a machine has at least.
WORKERS ?= 5
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS)

.PHONY: help demo check test nightly desktops install lint type layers unit quick diagrams schemas bench wheels deb clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## Set up, then see the node at work on this machine: real sensors, real tasks, every state
	@deploy/setup run
	@$(BIN)/rae-node demo --speed $(SPEED)

check: ## A minute: lint, types, layers, and the tests that start no programs
	@deploy/setup test
	@$(MAKE) --no-print-directory -j4 --output-sync lint type layers quick

test: ## Minutes: the same, and all tests but those of `make nightly`
	@deploy/setup test
	@$(MAKE) --no-print-directory lint type layers unit

nightly: ## Hours: the tests that try everything, kill 500 times, meet 10,000 faults, and `make desktops` (tests/README.md)
	@deploy/setup test
	RAE_DEEP=1 $(PYTEST) -m "nightly or deep or hypothesis"
	RAE_DEEP=1 $(PYTEST) tests/states
	$(BIN)/python tests/bench/crashes.py --kills 500
	$(BIN)/python tests/bench/unit_crashes.py --kills 120
	$(BIN)/python tests/bench/faults.py
	@$(MAKE) --no-print-directory desktops

desktops: ## As root, an hour and more: real desktops and ways in, each with the installed node beside it (ARGS="Plasma --cells film")
	@deploy/setup test
	$(BIN)/python tests/desktops/table.py --out build/desktops.md $(ARGS)

lint:
	$(BIN)/ruff check .

type:
	$(BIN)/mypy

layers:
	$(BIN)/lint-imports

unit:
	$(PYTEST)

quick: WORKERS = 2
quick:
	$(PYTEST) -q -m "not (slow or box or deep or nightly)"

diagrams: ## Draw diagrams/ from the table that runs
	$(BIN)/rae-node diagram --format mermaid --out diagrams/lifecycle.mmd
	$(BIN)/rae-node diagram --format dot --out diagrams/lifecycle.dot
	$(BIN)/rae-node diagram --format svg --out diagrams/lifecycle.svg
	$(BIN)/rae-node diagram --format svg --small --out diagrams/states.svg

schemas: ## Write config/ (both files and their schemas) from the types
	$(BIN)/python -m supervisor.config.generate config

install: ## As root: lay the node out under /opt/rae-node as a service; starts nothing (ARGS="--user anna", see deploy/install --help)
	@deploy/install $(ARGS)

bench: ## Measure against the baselines, an hour in all; stops with 1 where a target is missed (a file alone: see tests/bench)
	@deploy/setup test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python tests/bench/replay.py
	$(BIN)/python tests/bench/footprint.py
	$(BIN)/python tests/bench/presence.py
	$(BIN)/python tests/bench/crowd.py
	$(BIN)/python tests/bench/quiet.py
	$(BIN)/python tests/bench/whatif.py
	$(BIN)/python tests/bench/answers.py
	$(BIN)/python tests/bench/usefulness.py
	$(BIN)/python tests/bench/yield.py
	$(BIN)/python tests/bench/faults.py
	$(BIN)/python tests/bench/crashes.py
	$(BIN)/python tests/bench/fleet.py --nodes 10,100 --load 0.7

wheels: ## Everything that an installation without network needs, into build/wheels (deploy/install --wheels)
	@deploy/wheels build/wheels

deb: ## A Debian package of it, for this release and machine, into build/
	@deploy/debian/build

clean: ## Remove what make made
	rm -rf .venv .demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
