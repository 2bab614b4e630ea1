# Two commands do everything: `make run` and `make test`. `make help` lists the others.

VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
PAGES := src/millstream/server/pages/index.html
WEB_SOURCES := $(shell find web clients/ts/src -type f -not -path 'web/node_modules/*' 2>/dev/null)
CLIENT := clients/ts/dist/millstream.js
NEXTJS := examples/nextjs/.next/BUILD_ID
CONFORMANCE := tests/conformance
NODE_CLIENTS := $(CONFORMANCE)/node/node_modules/.installed
PYTHON_CLIENTS := $(patsubst $(CONFORMANCE)/python/%/requirements.txt,.venv-clients/%/.installed,$(wildcard $(CONFORMANCE)/python/*/requirements.txt))
FEW_CLIENTS := $(NODE_CLIENTS) .venv-clients/openai_sdk/.installed
export UV_PROJECT_ENVIRONMENT := $(VENV)
export UV_PYTHON_DOWNLOADS := never
# Python keeps what it has compiled, whatever its user has set: every start of a program would do it again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run page test test-all conformance clients check lint types imports generated web-lint fast live web-test fix faults nemesis mutants bench profile peers docs pictures web dist clean test-deps

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# exec: between make and the server there is no shell, which Ctrl-C would end before the server has.
run: export MILLSTREAM_REQUIRE_PROVIDER := false
run: $(VENV)/run page  ## Start the server on its defaults; prints the URL and a key
	@exec $(BIN)/millstream serve --temporary-key $(ARGS)

page: $(VENV)/run
	@if missing=$$(./tools/need-node "the chat page (make web)"); then $(MAKE) --no-print-directory web; \
	else $(BIN)/python tools/page_of_a_wheel.py "$$missing"; fi

# Every half runs, whatever the ones before it say; the last line names those that failed.
test:  ## Install what the tests need and run all of them
	@failed=; for half in check fast live web-test; do \
	  $(MAKE) --no-print-directory $$half || failed="$$failed $$half"; \
	done; [ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }

test-all: $(VENV)/dev web test-deps  ## The tests without a server, on every Python from 3.11 on that is installed
	@./tools/test-all $(ARGS)

check: lint types imports generated web-lint  ## Everything that needs no running: style, types, layers, made files, sizes

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev
	$(BIN)/mypy

imports: $(VENV)/dev
	$(BIN)/lint-imports --no-cache

generated: $(VENV)/dev
	$(BIN)/python tools/generate.py --check

web-lint: web $(CLIENT)
	cd web && npm run lint && npm run knip && npm run size
	cd clients/ts && npm run lint && npm run knip && npm run size

# Three tests at a time on two cores: they often wait.

# The tests inside this process. Their branch coverage may only rise: raise fail_under in pyproject.toml with it.
fast: $(VENV)/dev test-deps
	$(BIN)/pytest tests --ignore tests/live --ignore tests/conformance -m cost $(ARGS)
	$(BIN)/pytest tests --ignore tests/live --ignore tests/conformance -m "not faults and not cost" -n 3 --dist loadfile --cov --cov-report= $(ARGS)
	@$(BIN)/coverage report --format=total | sed 's/^/branch coverage in percent: /'

# The tests of servers, browsers and proxies, and a few of the official clients.
live: $(VENV)/dev web test-deps $(CLIENT) $(NEXTJS) $(FEW_CLIENTS)
	$(BIN)/pytest tests/live tests/conformance -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

conformance: $(VENV)/dev web test-deps $(NODE_CLIENTS) $(PYTHON_CLIENTS)  ## All official clients of other formats, each in its own environment
	$(BIN)/pytest tests/conformance -m "conformance or not conformance" $(ARGS)

.venv-clients/%/.installed: $(CONFORMANCE)/python/%/requirements.txt | $(UV)
	$(UV) venv --quiet --clear --python $(BIN)/python $(@D)
	$(UV) pip sync --quiet --python $(@D)/bin/python $<
	@touch $@

$(NODE_CLIENTS): $(CONFORMANCE)/node/package-lock.json
	cd $(CONFORMANCE)/node && npm ci --no-audit --no-fund
	@touch $@

# Newer versions of the clients in Python; those in Node are in node/package.json.
clients: $(UV)
	@for client in $(CONFORMANCE)/python/*/; do $(UV) pip compile --quiet --upgrade --universal --python-version 3.11 \
	  --no-header --no-annotate $$client/requirements.in -o $$client/requirements.txt; done

web-test: web test-deps $(CLIENT)
	cd web && npm test
	cd clients/ts && npm test

$(CLIENT): clients/ts/node_modules/.installed $(wildcard clients/ts/src/*.ts clients/ts/*.json clients/ts/*.config.ts)
	cd clients/ts && npm run build
	@touch $@

clients/ts/node_modules/.installed: clients/ts/package-lock.json
	@./tools/need-node "the TypeScript client" >&2
	cd clients/ts && npm ci --no-audit --no-fund
	@touch $@

# The client's newest files go into the copy that npm has made of it.
$(NEXTJS): examples/nextjs/node_modules/.installed $(CLIENT) $(shell find examples/nextjs/app -type f) $(wildcard examples/nextjs/*.ts) examples/nextjs/package.json examples/nextjs/tsconfig.json
	cp clients/ts/dist/* examples/nextjs/node_modules/millstream/dist/
	cd examples/nextjs && NEXT_TELEMETRY_DISABLED=1 npm run build
	@touch $@

examples/nextjs/node_modules/.installed: examples/nextjs/package-lock.json | $(CLIENT)
	cd examples/nextjs && npm ci --no-audit --no-fund
	@touch $@

fix: $(VENV)/dev web/node_modules/.installed clients/ts/node_modules/.installed  ## Format and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	cd web && npm run format
	cd clients/ts && npm run format

faults: nemesis web $(CLIENT)  ## Long fault and load runs (about two hours); make test has short slices of them
	@command -v javac >/dev/null || ./tools/apt-install default-jdk-headless
	EXAMPLES=150 $(BIN)/pytest -m "faults or not faults" tests/test_provider_fuzz.py tests/contracts/test_survival.py tests/contracts/test_orphans.py tests/live/test_workers.py tests/live/test_browser.py tests/live/test_silence.py tests/live/test_soak.py tests/live/test_java.py tests/live/test_exports.py tests/http_client $(ARGS)

# Streams and faults of each of the two set-ups; SEED=7 runs one again.
STREAMS := 10000
FAULTS := 100
SEED := 0
nemesis: test-deps  ## Random streams, clients and faults, and the checker (docs/guides/nemesis.md)
	PYTHONPATH=tests $(BIN)/python -m nemesis.run --streams $(STREAMS) --faults $(FAULTS) --seed $(SEED) $(NEMESIS)

mutants: test-deps  ## Whether the nemesis finds what it is for (about 15 minutes)
	PYTHONPATH=tests $(BIN)/python -m nemesis.mutants $(ARGS)

bench: $(VENV)/dev web  ## Measure beside nginx and the tutorial's code; writes benchmarks/RESULTS.md
	@command -v nginx >/dev/null || test -x /usr/sbin/nginx || ./tools/apt-install nginx
	$(BIN)/python benchmarks/report.py $(if $(PEERS),--peers)

profile: $(VENV)/dev web  ## Where the processor time of an event and of a request goes, line by line
	$(BIN)/python benchmarks/hot_lines.py $(ARGS)

# The other gateways that install from a package, each in an environment of its own.
PEER_ENVIRONMENTS := $(patsubst benchmarks/peers/%.txt,.venv-peers/%/.installed,$(wildcard benchmarks/peers/*.txt))
ifdef PEERS
bench: peers
endif

peers: $(PEER_ENVIRONMENTS)  ## Install the other gateways that make bench PEERS=1 measures

.venv-peers/%/.installed: benchmarks/peers/%.txt | $(UV)
	$(UV) venv --quiet --clear --python $(BIN)/python $(@D)
	$(UV) pip install --quiet --python $(@D)/bin/python -r $<
	@touch $@

docs: $(VENV)/dev  ## Write the files that are made from the code
	$(BIN)/python tools/generate.py

pictures: test-deps web  ## Take the pictures in the docs, by their test
	@mkdir -p docs/images
	PICTURES=1 $(BIN)/pytest tests/live/test_page.py -k pictures

web: $(PAGES)  ## Build the chat page

dist: $(UV) web clients/ts/node_modules/.installed  ## Build the packages, for Python and for npm, into dist/
	rm -rf dist
	$(UV) build --quiet --out-dir dist
	cd clients/ts && npm pack --silent --pack-destination ../../dist >/dev/null
	@ls dist

$(PAGES): web/node_modules/.installed $(WEB_SOURCES)
	cd web && npm run build
	@touch $@

web/node_modules/.installed: web/package-lock.json
	@./tools/need-node "the chat page (make web)" >&2
	cd web && npm ci --no-audit --no-fund
	@touch $@

# The browser, the proxy and the Redis of the tests come from Debian.
test-deps: $(VENV)/dev
	@./tools/apt-install nginx chromium redis-server

$(UV):
	@./tools/make-venv $(VENV)

$(VENV)/run: $(UV) pyproject.toml uv.lock
	$(UV) sync --quiet --frozen --inexact --no-default-groups --group local-model --extra local
	@touch $@

$(VENV)/dev: $(UV) pyproject.toml uv.lock
	$(UV) sync --quiet --frozen --inexact --all-groups --all-extras
	@touch $@ $(VENV)/run

clean:  ## Remove what was installed and built (not the data)
	rm -rf $(CONFORMANCE)/node/node_modules .venv-clients .venv-peers
	rm -rf $(VENV) dist web/node_modules clients/ts/node_modules clients/ts/dist examples/nextjs/node_modules examples/nextjs/.next src/millstream/server/pages .mypy_cache .ruff_cache .hypothesis
