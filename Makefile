# `make run` and `make test` set up what they need: Python 3.11+ with pip and venv is enough.

PYTHON ?= python3
BIN := .venv/bin
RUN ?=
STRESS_SECONDS ?= 10
BENCH ?=
FUZZ_SECONDS ?= 300
FUZZ_EXECUTIONS ?= 0
FUZZ_CORE ?= compiled
JOBS ?= $(shell nproc)
SEEDS ?= 0:1000
TORTURE ?=
BUGS ?=

# What the tests talk to, by Debian's names.
PACKAGES := memcached sasl2-bin libsasl2-modules libsasl2-modules-db libmemcached-tools \
	php-cli php-memcached ruby ruby-dalli libcache-memcached-perl libcache-memcached-fast-perl \
	nodejs netcat-openbsd curl prometheus openssl chromium gcc libc6-dev python3-dev systemd
# And what apps are made with.
FRAMEWORKS := ruby-actionpack ruby-connection-pool php-illuminate-cache php-illuminate-session \
	php-illuminate-config default-jdk-headless libspymemcached-java libspring-context-java

# Tests that take a minute of the processor, in memory, without a clock but their own.
PURE := tests/test_text_session_machine.py tests/test_session_machine.py tests/test_simulation.py \
	tests/test_seeded_bugs.py
# Tests of what surrounds the tunnel, which take long to set up: `make test-around`.
AROUND := $(filter-out tests/test_frameworks_keys.py,$(wildcard tests/test_frameworks*.py)) \
	$(wildcard tests/test_*_itself.py) tests/test_buildpack.py tests/test_packaging.py
# Tests whose programs wait for nobody's deadline: they may share the processor as well.
ASIDE := $(wildcard tests/test_bench*.py) tests/test_alerts.py tests/test_bad_certificates.py \
	tests/test_ca.py tests/test_check.py tests/test_containers.py tests/test_contract.py \
	tests/test_dashboard.py tests/test_docs.py tests/test_frameworks_keys.py \
	tests/test_kubernetes.py tests/test_logs.py tests/test_public_ca.py tests/test_start.py \
	tests/test_start_errors.py tests/test_status_page.py tests/test_systemd.py \
	tests/test_unix_socket.py
# Tests of what is never compiled: once is enough.
ONCE := $(ASIDE) tests/test_demo.py tests/test_history.py tests/test_house.py tests/test_readme.py \
	tests/test_seeded_bugs.py tests/test_status_of_a_running_tunnel.py tests/test_supervisor.py \
	tests/test_tls.py tests/test_top.py tests/test_transports.py
PURE_ON_COMPILED := compiled/tests/test_session_machine.py compiled/tests/test_simulation.py
ON_COMPILED = MEMTUNNEL_CORE=compiled PYTHONPATH=$(CURDIR)/build/compiled $(BIN)/pytest -m "not full"

.PHONY: run check test test-all test-around test-compiled compiled frozen lint system stress bench \
	instructions fuzz simulate torture seeded-bugs pictures tables clean aside rest compiled/rest \
	$(PURE) $(PURE_ON_COMPILED)

# On the servers that are configured; where there are none, on the embedded one.
run: .venv/run
	@servers="$$MEMCACHIER_SERVERS$$MEMCACHE_SERVERS$$MEMTUNNEL_SERVER$$MEMTUNNEL_CONFIG"; \
	case "$(RUN)" in *--server*|*--config*) servers=given;; esac; \
	if [ -z "$$servers" ]; then demo=--demo; fi; \
	exec $(BIN)/memtunnel $$demo $(RUN)

check: .venv/run
	$(BIN)/memtunnel check

test: .venv/test system
	$(BIN)/pytest -m "not full"

# Two at a time, the longest first.
test-all: system
	$(MAKE) --jobs=2 --output-sync lint compiled
	$(MAKE) --jobs=2 --output-sync rest compiled/rest aside $(PURE) $(PURE_ON_COMPILED)

rest: .venv/test
	$(BIN)/pytest $(patsubst %,--ignore=%,$(PURE) $(ASIDE) $(AROUND))

# Those on the compiled core want `make compiled` before.
compiled/rest:
	$(ON_COMPILED) $(patsubst %,--ignore=%,$(ONCE) $(PURE) $(AROUND))

$(PURE): .venv/test
	$(BIN)/pytest $@

aside: .venv/test
	$(BIN)/pytest $(wildcard $(ASIDE))

$(PURE_ON_COMPILED):
	$(ON_COMPILED) $(@:compiled/%=%)

# The same tests on the compiled core.
test-compiled: compiled system
	$(ON_COMPILED) $(ONCE:%=--ignore=%)

# The compiled core is built beside the sources and not over them.
compiled: .venv/test
	rm -rf build/compiled
	MEMTUNNEL_COMPILE=1 $(BIN)/pip install --quiet --disable-pip-version-check \
		--no-deps --target build/compiled .

# What the pages on frameworks say, the buildpack with the frozen program, systemd and containers.
test-around: .venv/test
	$(MAKE) system PACKAGES="$(PACKAGES) $(FRAMEWORKS)"
	$(MAKE) frozen
	$(BIN)/pytest $(AROUND)
	$(ON_COMPILED) tests/test_text_session_machine.py

# memtunnel and all that it needs in one tarball, for machines without Python.
frozen: compiled
	rm -rf build/frozen
	$(BIN)/python deploy/frozen/freeze.py --package build/compiled build/frozen

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Installs what the tests talk to where that is possible; the tests say what they skip.
# Debian's nodejs comes without npm, which others' nodejs brings along, and does not go with theirs.
system:
	@missing=""; for package in $(PACKAGES); do \
		dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	command -v npm >/dev/null || missing="$$missing npm"; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing:$$missing"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else echo "not installed, some tests will be skipped:$$missing"; fi

stress:
	@command -v memtier_benchmark >/dev/null || { \
		echo "memtier_benchmark is not on PATH; it is to be had at"; \
		echo "https://github.com/RedisLabs/memtier_benchmark"; exit 1; }
	memtier_benchmark --server=127.0.0.1 --port=11211 --protocol=memcache_binary \
		--threads=2 --clients=25 --data-size=100 --ratio=1:10 --key-maximum=10000 \
		--test-time=$(STRESS_SECONDS) --hide-histogram

# Beside what else there is: BENCH="--rounds 3 --shapes 200x1"; BENCH=--help tells all of it.
bench: .venv/bench
	@case "$(BENCH)" in *memtunnel-compiled*) $(MAKE) compiled;; esac
	@PYTHONPATH=$(CURDIR)/tests $(BIN)/python -m benchmarks $(BENCH)

# What being watched costs, by valgrind and memtier_benchmark, on a machine that does nothing else.
instructions: .venv/bench
	@PYTHONPATH=$(CURDIR)/tests $(BIN)/python -m benchmarks.instructions

# Each parser with new inputs, so many or for so many seconds; what is found is kept in build/fuzz.
# FUZZ_CORE=plain does without a C compiler, at two thirds of the speed.
fuzz: .venv/test $(filter compiled,$(FUZZ_CORE))
	@for target in binary_client text_client upstream; do \
		MEMTUNNEL_CORE=$(FUZZ_CORE) PYTHONPATH=$(CURDIR)/build/$(FUZZ_CORE):$(CURDIR)/tests \
			$(BIN)/python -P -m fuzz $$target --executions $(FUZZ_EXECUTIONS) \
			--seconds $(FUZZ_SECONDS) --jobs $(JOBS) || failed=1; done; [ -z "$$failed" ]

# The whole tunnel in memory, a world for each seed; a seed that fails tells its story.
simulate: .venv/test
	@PYTHONPATH=$(CURDIR)/tests $(BIN)/python -m simulation --seeds $(SEEDS)

# On real sockets, under faults, for the figures of a release: TORTURE="--minutes 10 --only soak";
# TORTURE=--help tells all of it.
torture: .venv/test system
	@PYTHONPATH=$(CURDIR)/tests $(BIN)/python -m torture $(TORTURE)

# The pictures in docs/observability.md, by the status page itself in a browser.
pictures: .venv/test system
	@PYTHONPATH=$(CURDIR)/tests $(BIN)/python -P tests/pictures.py

# The tables in docs/ that the code makes.
tables: .venv/test
	@PYTHONPATH=$(CURDIR):$(CURDIR)/tests $(BIN)/python -P tests/doc_tables.py

# Sixteen bugs, one by one, and which tests catch them; BUGS=--quick leaves out what does by chance.
seeded-bugs: .venv/test
	@PYTHONPATH=$(CURDIR)/tests $(BIN)/python -P -m seeded_bugs $(BUGS)

.venv/run: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "memtunnel needs Python 3.11 or newer; PYTHON=/path/to/python3 names another"; exit 1; }
	@$(PYTHON) -m venv .venv || { \
		echo "Python's venv is missing (on Debian: apt-get install python3-venv)"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/test: .venv/run
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

.venv/bench: .venv/run
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

clean:
	rm -rf .venv build dist
