# Needs python3 with venv, and make. Everything else goes into .venv and .tox.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NOTE := $(CURDIR)/.tox/note.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench rabbitmq redis clean

help: ## list the targets
	@echo 'Targets:'
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST)

demo: $(VENV)/.postage ## run the demos on the embedded broker, or on $POSTAGE_URL or $POSTAGE_HOST
	@$(BIN)/python demos/run_all.py

# A missing RabbitMQ is said at the very end, below what tox prints.
test: $(VENV)/.tox ## style, types and all tests; ARGS="-k word" goes to pytest
	@rm -f '$(NOTE)'
	@status=0; POSTAGE_TEST_NOTE='$(NOTE)' $(BIN)/tox run $(if $(ARGS),-- $(ARGS)) || status=$$?; \
	if [ -e '$(NOTE)' ]; then cat '$(NOTE)'; fi; exit $$status

lint: $(VENV)/.tox ## style and types only
	@$(BIN)/tox run -e lint

# It makes environments of its own, below benchmarks/.
bench: ## measure Postage beside its peers; BENCH=publish,rpc ROUNDS=3 SIZE=0.1 CONTENDERS=postage,kombu SEED=1
	@$(PYTHON) benchmarks/run.py $(if $(BENCH),--bench '$(BENCH)') $(if $(ROUNDS),--rounds '$(ROUNDS)') \
	    $(if $(SIZE),--size '$(SIZE)') $(if $(CONTENDERS),--contenders '$(CONTENDERS)') $(if $(SEED),--seed '$(SEED)')

rabbitmq: PACKAGE := rabbitmq-server
rabbitmq: ## install rabbitmq-server (Debian, Ubuntu), so that the tests run against it too
	$(INSTALL)

redis: PACKAGE := redis-server
redis: ## install redis-server (Debian, Ubuntu), so that the tests of the Redis adapter run
	$(INSTALL)

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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[wsgi]'
	@touch $@
