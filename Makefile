# Needs python3 with venv, and make. Everything else goes into .venv and .tox.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NOTE := $(CURDIR)/.tox/note.txt

# BROKER=4.3 or 4.0, which `make brokers` prepares, in place of the RabbitMQ that is installed.
export POSTAGE_TEST_BROKER ?= $(BROKER)

.DEFAULT_GOAL := help
.PHONY: help demo docs pictures wheel test soak lanes versions frameworks lint bench calls rabbitmq brokers redis venv amqp-tools old-releases table clean

help: ## list the targets
	@echo 'Targets:'
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST)

demo: $(VENV)/.postage ## run the demos on the embedded broker, or on $POSTAGE_URL or $POSTAGE_HOST; DEMO="basic rpc" for some
	@$(BIN)/python demos/run_all.py $(DEMO)

docs: $(VENV)/.docs ## make the site of the pages in docs: build/docs/index.html
	@$(BIN)/python -m sphinx -E -a -W --keep-going -q -b html docs build/docs
	@echo 'file://$(CURDIR)/build/docs/index.html'

pictures: $(VENV)/.postage ## record docs/images/demo.svg and top.svg anew, of what a terminal shows
	@$(BIN)/python docs/record.py

# The source distribution, and the wheel that is built from it: afterwards dist/*.tar.gz can be built without a network, by
# .venv/bin/python -m pip wheel --no-build-isolation --no-deps dist/*.tar.gz
wheel: $(VENV)/.build ## build the source distribution and the wheel into dist, and check them
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation --outdir dist . >/dev/null
	@$(BIN)/python -m twine check --strict dist/*

# What is quick goes first, side by side. A missing RabbitMQ is said at the very end, below what tox prints.
test: $(VENV)/.tox ## style, types and all tests; SEED=1 RUNS=3 for the chaos, BROKER=4.3, ARGS="-k word" goes to pytest
	@rm -f '$(NOTE)'
	@status=0; $(BIN)/tox run-parallel --parallel-no-spinner -e lint,pika-oldest,pika-prerelease || status=$$?; \
	POSTAGE_TEST_NOTE='$(NOTE)' SEED='$(SEED)' RUNS='$(RUNS)' \
	    $(BIN)/tox run -e tests $(if $(ARGS),-- $(ARGS)) || status=$$?; \
	if [ -e '$(NOTE)' ]; then cat '$(NOTE)'; fi; exit $$status

# About half an hour on two cores: the chaos in one process, the stress beside it, and then all the rest.
soak: $(VENV)/.tox ## the long forms of the tests that have one; SEED=1 RUNS=3 for the chaos, ARGS="-k word" goes to pytest
	@POSTAGE_SOAK=1 SEED='$(SEED)' RUNS='$(RUNS)' $(BIN)/tox run -e tests -- --timeout 1800 $(SOAK_TESTS) $(ARGS)

SOAK_TESTS = $(sort $(shell grep -rl '^from support.soak import' tests))

# About three minutes. "make test" has all of it in the lane that is the default, and the essence in each.
lanes: $(VENV)/.tox ## the tests of reliability with POSTAGE_FAST_LANE=thread
	@POSTAGE_FAST_LANE=thread SEED='$(SEED)' RUNS='$(RUNS)' $(BIN)/tox run -e tests -- tests/reliability $(ARGS)

# What depends on the broker, in about three minutes each; "make test BROKER=4.3" has all tests.
versions: $(VENV)/.tox ## conformance, reliability and dead letters on RabbitMQ 4.3 and 4.0, or on BROKER=4.3
	@status=0; for version in $(or $(BROKER),4.3 4.0); do \
	    echo "tests of RabbitMQ $$version"; \
	    POSTAGE_TEST_BROKER=$$version $(BIN)/tox run -e tests -- $(VERSION_TESTS) -m on_rabbitmq $(ARGS) || status=$$?; \
	done; exit $$status

VERSION_TESTS := tests/conformance tests/reliability tests/dead_letters tests/messaging/test_dead_letters.py \
    tests/messaging/test_max_deliveries.py tests/messaging/test_retry.py

frameworks: $(VENV)/.tox ## run the programs of Celery, nameko and FastStream that docs/guides/coming_from.rst shows
	@$(BIN)/tox run -e frameworks $(if $(ARGS),-- $(ARGS))

lint: $(VENV)/.tox ## style and types only
	@$(BIN)/tox run -e lint

# The first one makes environments of its own, below benchmarks/: with the distribution's Python where that is an optimised
# build, or with the one that PYTHON says.
bench: $(VENV)/.postage ## measure Postage beside its peers; BENCH=publish,rpc ROUNDS=3 SIZE=0.1 CONTENDERS=postage,kombu SEED=1
	@$(if $(filter-out $(OWN_BENCHES),$(or $(BENCH),all)),$(PYTHON) benchmarks/run.py \
	    $(if $(filter-out file,$(origin PYTHON)),--python '$(PYTHON)') $(if $(BENCH),--bench '$(BENCH)') \
	    $(if $(ROUNDS),--rounds '$(ROUNDS)') $(if $(SIZE),--size '$(SIZE)') \
	    $(if $(CONTENDERS),--contenders '$(CONTENDERS)') $(if $(SEED),--seed '$(SEED)'))
	@for bench in $(if $(BENCH),$(filter $(OWN_BENCHES),$(BENCH)),$(OWN_BENCHES)); do \
	    $(BIN)/python benchmarks/$$bench.py $(if $(ROUNDS),--rounds '$(ROUNDS)') || exit; \
	done

# Microthreads beside asyncio, and the broker in memory beside RabbitMQ.
OWN_BENCHES := microthreads broker

calls: $(VENV)/.postage ## count the Python calls a message takes; ROWS=publish,rpc-caller, or FUNCTIONS=rpc-caller for each of them
	@$(BIN)/python benchmarks/calls.py $(if $(ROWS),--rows '$(ROWS)') $(if $(FUNCTIONS),--by-function '$(FUNCTIONS)')

rabbitmq: PACKAGE := rabbitmq-server
rabbitmq: ## install rabbitmq-server (Debian, Ubuntu), so that the tests run against it too
	$(INSTALL)

# About a minute each, once for a machine: $POSTAGE_BROKERS, by default /var/cache/postage/brokers, keeps them.
brokers: ## prepare RabbitMQ 4.0 and 4.3 beside the installed one, for BROKER=4.3 (Debian, as root)
	@sh tests/support/prepare_brokers.sh $(BROKER)

redis: PACKAGE := redis-server
redis: ## install redis-server (Debian, Ubuntu), so that the tests of the Redis adapter run
	$(INSTALL)

venv: PACKAGE := python3-venv
venv: ## install python3-venv (Debian, Ubuntu), so that the tests can run on the distribution's Python
	$(INSTALL)

amqp-tools: PACKAGE := amqp-tools
amqp-tools: ## install amqp-tools (Debian, Ubuntu), a client in C that the embedded broker is tried with
	$(INSTALL)

old-releases: ## prepare Postage 1.2.1, with which ours is compared; the tests do it themselves
	@$(PYTHON) tests/support/old_release.py

# A minute, and a RabbitMQ.
table: $(VENV)/.postage ## write the table of docs/upgrading.rst anew, and record what the programs in tests/fidelity do on 1.2.1
	@PYTHONPATH=tests $(BIN)/python tests/support/fidelity.py
	@PYTHONPATH=tests $(BIN)/python tests/support/fidelity_runs.py

define INSTALL
@if ! command -v apt-get >/dev/null; then \
    echo 'make $@ needs apt-get; elsewhere install $(PACKAGE) by hand'; \
    exit 1; \
fi
@if [ "$$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi; \
$$sudo apt-get update && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install --yes $(PACKAGE)
endef

clean: ## remove what these targets made
	rm -rf $(VENV) .tox benchmarks/.environments .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info

# Each stamp stands for one thing that has been installed into the virtual environment.
$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.tox: $(VENV)/.created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'tox>=4.20'
	@touch $@

# Editable: changes to the sources need no new installation.
$(VENV)/.postage: $(VENV)/.created pyproject.toml setup.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cli,wsgi]'
	@touch $@

$(VENV)/.docs: $(VENV)/.created pyproject.toml setup.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cli,redis,wsgi,docs]'
	@touch $@

# What builds, and what pyproject.toml says it takes.
$(VENV)/.build: $(VENV)/.created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build twine 'setuptools>=77.0.3'
	@touch $@
