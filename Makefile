# make run    the whole analysis on a local Ray cluster, from nothing
# make app    watch it: the live page in a browser, http://127.0.0.1:8501
# make test   every test        make test-quick  without Ray, broker, browser       make check   lint, format and types        make bench   measure against the peers
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: run app screenshots test test-quick slow check bench bench-engine bench-start bench-files bench-remote bench-hot bench-messaging bench-variations chaos lock clean

# The first Python that runs and is new enough.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
# Bytecode is kept, whatever the machine's own habit: some hundreds of processes of the tests would compile it again.
export PYTHONDONTWRITEBYTECODE :=
# Options of `hzzray run`, such as: make run ARGS="--release 2020 --source DIR"
ARGS ?=
# Options of pytest, such as: make test PYTEST="-m 'not slow'"
PYTEST ?=
# Debian's packages that the tests need; SYSTEM= installs none.
SYSTEM ?= rabbitmq-server chromium

# A RabbitMQ broker that the run's tasks go through: make run BROKER=amqp://USER@HOST
BROKER ?=

run: $(VENV)/.run
	$(BIN)/hzzray run $(if $(BROKER),--broker $(BROKER)) $(ARGS)

# Options of `streamlit run`, such as: make app ARGS="--server.port 8600"
app: $(VENV)/.run
	$(BIN)/streamlit run app/main.py $(ARGS)

# The pictures of docs/img, taken anew in Debian's chromium.
screenshots: $(VENV)/.dev $(VENV)/.system
	$(BIN)/python -m tests.support.screenshots $(ARGS)

# Two at a time, in the groups that tests/conftest.py makes. SPREAD= runs them one by one.
SPREAD ?= --numprocesses 2 --dist loadscope --no-loadscope-reorder
test: $(VENV)/.dev $(VENV)/.system
	$(BIN)/python -m pytest $(SPREAD) $(PYTEST)

# What needs no broker, no cluster, no browser, and little time.
test-quick: $(VENV)/.dev
	$(BIN)/python -m pytest --quick --numprocesses 2 --dist loadscope $(PYTEST)

# Writes down which of those take half a second or more: they are no part of the quick ones.
slow: $(VENV)/.dev $(VENV)/.system
	$(BIN)/python -m pytest $(SPREAD) --note-slow $(PYTEST)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/bench.py $(ARGS)

bench-engine: $(VENV)/.dev
	$(BIN)/python benchmarks/reducer.py $(ARGS)

bench-start: $(VENV)/.dev
	$(BIN)/python benchmarks/startup.py $(ARGS)

bench-files: $(VENV)/.dev
	$(BIN)/python benchmarks/files.py files $(ARGS)

bench-remote: $(VENV)/.dev
	$(BIN)/python benchmarks/files.py remote $(ARGS)

bench-hot: $(VENV)/.dev
	$(BIN)/python benchmarks/hot.py $(ARGS)

bench-variations: $(VENV)/.dev
	$(BIN)/python benchmarks/variations.py $(ARGS)

bench-messaging: $(VENV)/.dev $(VENV)/.system
	$(BIN)/python benchmarks/messaging.py $(ARGS)

# The kills of the tests, for longer: make chaos ROUNDS=50 SEED=7
ROUNDS ?= 20
SEED ?= 1
chaos: $(VENV)/.dev
	HZZRAY_CHAOS_ROUNDS=$(ROUNDS) HZZRAY_CHAOS_SEED=$(SEED) $(BIN)/python -m pytest tests/test_chaos.py tests/test_bridge_chaos.py --timeout 7200

# Pinned versions for every platform and Python >= 3.11; needs uv. The image has root:// too, which has wheels for Linux.
lock:
	echo uv | uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-header \
	  --generate-hashes --upgrade - -o requirements-uv.lock
	uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-header --generate-hashes --upgrade \
	  --extra broker --extra app --extra fit pyproject.toml -o requirements.lock
	uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-header --generate-hashes \
	  --extra broker --extra app --extra fit --extra openmagic --extra test --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock
	printf '%s\n' fsspec-xrootd xrootd | uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-header \
	  --generate-hashes --no-deps -c requirements.lock - -o requirements-image.lock

# Containers: docs/compose.md. make compose-up, and http://127.0.0.1:8501 is the app.
COMPOSE ?= docker compose
.PHONY: compose-build compose-up compose-scale compose-logs compose-status compose-down compose-clean compose-secrets
.PHONY: compose-test compose-test-all

compose-build:
	docker build --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) --tag $${HZZRAY_IMAGE:-hzzray:0.2.0} .

compose-up: compose-build
	$(COMPOSE) up --detach
	@echo "app: http://127.0.0.1:$${APP_PORT:-8501}   make compose-status shows how it goes"

# make compose-scale N=4: nothing else is started anew
N ?= 2
compose-scale:
	$(COMPOSE) up --detach --no-deps --no-recreate --scale ray-worker=$(N) ray-worker

# make compose-logs ARGS=bridge
compose-logs:
	$(COMPOSE) logs --follow --tail 100 $(ARGS)

compose-status:
	$(COMPOSE) ps --all
	$(COMPOSE) exec bridge hzzray runs

# Runs and messages stay in their volumes, and go on with the next compose-up.
compose-down:
	$(COMPOSE) down --remove-orphans

# All of it, results too.
compose-clean:
	$(COMPOSE) down --remove-orphans --volumes --rmi local

compose-secrets:
	deploy/secrets.sh secrets

# Need a Docker Engine; skipped without one. The first is the core, some minutes.
compose-test: $(VENV)/.dev
	HZZRAY_COMPOSE=core $(BIN)/python -m pytest tests/test_compose.py $(PYTEST)

compose-test-all: $(VENV)/.dev
	HZZRAY_COMPOSE=all $(BIN)/python -m pytest tests/test_compose.py tests/test_kube_containers.py $(PYTEST)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

# uv takes a quarter of pip's time; pip goes on where it finds no way out, as it has settings of its own for that.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
install = $(BIN)/uv pip install --quiet --system-certs --compile-bytecode --python $(BIN)/python --require-hashes -r $(1) \
  || $(PIP) --require-hashes -r $(1)

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { echo "Python's venv is needed: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.lock requirements-uv.lock pyproject.toml | $(VENV)/bin/python
	@echo "installing what hzzray needs into $(VENV): a minute or some, the first time"
	$(PIP) --require-hashes -r requirements-uv.lock
	$(call install,requirements.lock)
	$(PIP) --no-deps --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run
	$(call install,requirements-dev.lock)
	@touch $@

$(VENV)/.system: Makefile tests/support/install.sh | $(VENV)/bin/python
	tests/support/install.sh $(SYSTEM)
	@touch $@

# The documents as a site, in site/; any warning is an error.
.PHONY: docs
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --strict --quiet --site-dir site
