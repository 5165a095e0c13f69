# Everything that is done with a checkout. `make` alone lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
KERNELS := common/jit.py $(shell find common workers -name '*kernels*.py')
PAGE := $(shell find web/src web/public 2>/dev/null) $(wildcard web/*.html web/*.ts web/*.json)
SUPERVISORCTL := $(BIN)/supervisorctl -c supervisord.conf

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where it is set each process compiles every module of ours again: a quarter of a second for each of thousands.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help env page demo run stop status test fuzz chaos lint bench clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(VENV)/.kernels page  ## the Python environment (.venv), compiled kernels, the page, folders for data
	@mkdir -p data/log data/run

# The stamps are files in the environment, newer than all that they were made from.
$(VENV)/.installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make env: $(PYTHON) is too old or missing; minitrue wants Python 3.11 or newer" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "make env: $(PYTHON) cannot make environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@

$(VENV)/.kernels: $(VENV)/.installed $(KERNELS)
	$(BIN)/python -m common.jit
	@touch $@

# The API works without the page, so whatever keeps it from being built is told, and no more than that; CI wants it.
HAS_NODE := node -e 'process.exit(process.versions.node.split(".")[0] < 18 ? 1 : 0)' 2>/dev/null && command -v npm >/dev/null
page:
	@if ! { $(HAS_NODE); }; then why="it wants Node 18 or newer, and npm"; \
	elif ! $(MAKE) -s --no-print-directory web/dist/.built; then why="see above; without a network npm has no packages"; \
	else exit 0; fi; \
	if test -e web/dist/index.html; then is="stays as it was built before"; else is="is not built, / says how to"; fi; \
	echo "make env: the page $$is ($$why). All else works." >&2; test -z "$$MINITRUE_CI"

# npm's own patience with a network that is not there is minutes.
web/node_modules/.installed: web/package.json web/package-lock.json
	cd web && npm ci --prefer-offline --fetch-retries=1 --fetch-retry-mintimeout=1000 --loglevel=error
	@touch $@

web/dist/.built: web/node_modules/.installed $(PAGE)
	cd web && npm run --silent build
	@touch $@

demo: env  ## a throw-away cluster with simulated sensors and live answers; Ctrl-C ends it
	@$(BIN)/python -m tools.demo_app

run: env  ## all workers in the foreground; Ctrl-C stops them
	exec $(BIN)/supervisord -n -c supervisord.conf

stop:  ## stop the workers that supervisord runs, and wait for their end
	@pid=$$(cat data/run/supervisord.pid 2>/dev/null); $(SUPERVISORCTL) shutdown; \
	while [ -n "$$pid" ] && kill -0 $$pid 2>/dev/null; do sleep 0.2; done

status:  ## what runs, and the ring
	@$(SUPERVISORCTL) status || true
	@tools/ringctl status

test: env lint  ## lint, then all tests, three at a time: most of them wait for processes
	$(BIN)/pytest -n 3 --dist worksteal --durations=40

fuzz: env  ## random lives of a store beside the oracle, other and more ones than in `test`; some minutes
	$(BIN)/pytest -p no:cacheprovider --hypothesis-profile=fuzz --hypothesis-show-statistics tests/workers/storage/test_stateful.py

chaos: env  ## faults of every kind while points flow and the ring changes, ten minutes each; LENGTH_S=... SEEDS=1,2,...
	MINITRUE_CHAOS_S=$(or $(LENGTH_S),600) MINITRUE_CHAOS_SEEDS=$(or $(SEEDS),$(shell date +%s)) $(BIN)/pytest -s \
	  -p no:cacheprovider tests/chaos tests/chaos_ring tests/pipeline/test_ring_faults_*.py tests/pipeline/long_ring_faults_*.py

lint: env  ## ruff, mypy in strict mode, and the types of the page
	$(BIN)/ruff check .
	$(BIN)/mypy
	@if test -e web/node_modules/.installed && { $(HAS_NODE); }; then cd web && npx --no-install tsc --noEmit; \
	else echo "make lint: the page's types are not checked, that wants Node and web/node_modules" >&2; fi

bench: env  ## speed and memory, beside what they are measured against
	$(BIN)/python -m tools.bench

clean:  ## remove the environment and caches, never data
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis web/node_modules web/dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
