# SPDX-License-Identifier: MPL-2.0
#
# `make` alone prints what there is. A line `target: ## text` is its help.

SHELL         := bash
.SHELLFLAGS   := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS     += --no-print-directory
.NOTPARALLEL:

PLUGIN  := vault-plugin-secrets-apikeys
MODULE  := github.com/vault-apikeys/vault-plugin-secrets-apikeys
# The plugin catalogue wants a semantic version with a leading v. Without a tag
# the default of internal/version stays.
VERSION ?= $(shell git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null)
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null)
LDFLAGS := -s -w \
	$(if $(VERSION),-X $(MODULE)/internal/version.Version=$(VERSION)) \
	$(if $(COMMIT),-X $(MODULE)/internal/version.Commit=$(COMMIT))
GO_BUILD := CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'

# Everything but the end-to-end tests, which need a server.
UNIT = $$(go list ./... | grep -v '^$(MODULE)/e2e')
# The race detector needs a C compiler. .ci/run has one; whoever has none is told.
RACE = $$(if command -v "$$(go env CC)" >/dev/null; then echo -race; else echo 'SKIP -race: no C compiler ($(shell go env CC))' >&2; fi)

# What the race detector makes take many minutes, or would measure itself: these
# run without it, and the rest with it.
NO_RACE := ^(TestEveryCrash(AtTheRoutes|OfTheFirstStart|OfACleanup)|TestOperationCountsDoNotGrow|TestPagesAgainstATwin|TestAFlushThatIsCutOffLosesOnlyWhatWasNotFlushed|TestWritesAreBoundedAt100000ActiveKeys|TestAMonthOf100000KeysIsBounded|TestAHitCostsLittleMoreThanItsHash)$$
# These run with it, in a small number for its sake, and without it in a large one.
BOTH := ^(TestTheMountBehavesAsItsModel|TestOneKeyIsLinearizable)$$

# Vault's own database engine as a plugin, which the tests of scale compare with.
PEER       := $(CURDIR)/dist/scale/database-engine
BUILD_PEER := cd scripts/vault && CGO_ENABLED=0 go build -trimpath -tags minimal -ldflags '-s -w' -o $(PEER) ./database-engine

TEST_FLAGS ?=
E2E_FLAGS  ?= -v -count=1 -p 1 -parallel 4 -timeout 25m
E2E        ?= ./e2e/...
BENCH      ?= .
FUZZTIME   ?= 10s
CHECKS     ?= 2000
CHAOS_TIME ?= 40m
SCALE_KEYS ?= 1000000

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## See a key roll over on a real Vault without a refused request
	@bin=$$(scripts/vault.sh) && VAULT_BIN=$$bin go run ./scripts/demo

.PHONY: build
build: ## Build the plugin, and the other commands, into bin/
	@mkdir -p bin
	$(GO_BUILD) -o bin/ ./cmd/...

.PHONY: dev
dev: ## Leave a dev Vault running with the engine at apikeys/, and say what to type next
	@scripts/dev.sh start

.PHONY: dev-reload
dev-reload: ## Build again and swap the plugin of the running dev Vault; its keys stay
	@scripts/dev.sh reload

.PHONY: dev-stop
dev-stop: ## Stop the dev Vault
	@scripts/dev.sh stop

.PHONY: test
test: packages fmt-check vet docs-check lint unit e2e vuln ## Everything, as CI does: format, vet, lint, docs, race tests, a real Vault, known vulnerabilities
	@echo 'PASS: make test'

# As root on Debian it installs what is missing; else it says what is.
.PHONY: packages
packages:
	@scripts/packages.sh

.PHONY: test-short
test-short: ## The inner loop: unit tests without the race detector and without a Vault
	go test -short $(TEST_FLAGS) $(UNIT)

.PHONY: unit
unit: ## Unit tests with the race detector
	@race=$(RACE); set -x; go test $$race -timeout 20m -skip '$(NO_RACE)' $(TEST_FLAGS) $(UNIT); \
		go test -timeout 15m -run '$(NO_RACE)|$(BOTH)' $(TEST_FLAGS) ./backend ./backend/internal/usage ./sdk/verifier

.PHONY: e2e
e2e: ## End-to-end tests on a real Vault; one of them: make e2e E2E_FLAGS='-v -run Name'
	$(BUILD_PEER)
	@bin=$$(scripts/vault.sh) && set -x && VAULT_BIN=$$bin APIKEYS_E2E_REQUIRE=1 DATABASE_ENGINE=$(PEER) go test $(E2E_FLAGS) $(E2E)

.PHONY: fmt
fmt: ## Format the sources
	@"$$(scripts/tools.sh)/golangci-lint" fmt

.PHONY: fmt-check
fmt-check:
	@bad=$$(git ls-files --cached --others --exclude-standard '*.go' | xargs gofmt -l); \
	if [ -n "$$bad" ]; then echo "FAIL gofmt; run make fmt:"; echo "$$bad"; exit 1; fi; echo 'ok   gofmt'

.PHONY: vet
vet:
	go vet ./...

.PHONY: lint
lint: ## golangci-lint, after a check of its configuration
	@tools=$$(scripts/tools.sh) && set -x && "$$tools/golangci-lint" config verify && "$$tools/golangci-lint" run ./...

.PHONY: vuln
vuln: ## govulncheck; says SKIP where its database is out of reach
	@scripts/vuln.sh

.PHONY: docs-check
docs-check: ## Links of the docs, licence headers, shell syntax
	@go run ./scripts/repocheck

.PHONY: bench
bench: ## Operation counts and throughput, beside their budgets
	go test -run '^$$' -bench '$(BENCH)' -benchmem $(UNIT)
	@bin=$$(scripts/vault.sh) && set -x && VAULT_BIN=$$bin APIKEYS_E2E_REQUIRE=1 go test -run '^$$' -bench '$(BENCH)' -timeout 30m $(E2E)

.PHONY: model
model: ## The tests against the reference model, of crashes and of concurrency, at length (CHECKS=2000)
	APIKEYS_MODEL=large go test -count=1 -timeout 2h -run 'TestTheMountBehavesAsItsModel|TestEveryCrash|TestOneKeyIsLinearizable|TestKeyBehavesAsItsTwin' \
		./backend ./backend/internal/keyring -rapid.checks=$(CHECKS)

.PHONY: chaos
chaos: ## Torture a cluster for CHAOS_TIME (40m) and report into dist/chaos; as root for all faults
	@bin=$$(scripts/vault.sh) && set -x && VAULT_BIN=$$bin APIKEYS_E2E_REQUIRE=1 CHAOS_TIME=$(CHAOS_TIME) CHAOS_REPORT=$(CURDIR)/dist/chaos \
		go test -v -count=1 -timeout 4h -run '^TestChaos$$' ./e2e/chaos

.PHONY: scale
scale: ## Measure SCALE_KEYS (1000000) keys and fewer, beside other engines, and report into dist/scale; takes hours
	@mkdir -p dist/scale
	SCALE_KEYS=$(SCALE_KEYS) SCALE_COUNTS=$(CURDIR)/dist/scale/counts.json go test -v -count=1 -timeout 4h -run '^TestOperationCountsDoNotGrow$$' ./backend
	$(BUILD_PEER)
	@bin=$$(scripts/vault.sh) && set -x && VAULT_BIN=$$bin APIKEYS_E2E_REQUIRE=1 SCALE_KEYS=$(SCALE_KEYS) SCALE_COUNTS=$(CURDIR)/dist/scale/counts.json \
		DATABASE_ENGINE=$(PEER) SCALE_REPORT=$(CURDIR)/dist/scale \
		go test -v -count=1 -timeout 12h -run '^TestScale$$' ./e2e/scale

.PHONY: fuzz
fuzz: ## Each fuzz test for FUZZTIME (10s)
	@scripts/fuzz.sh $(FUZZTIME)

.PHONY: vault
vault: ## Print the path of the Vault that is used, building it if need be
	@scripts/vault.sh

.PHONY: clean
clean: ## Remove what was built, but not the Vault and the linters in .cache/ (clean-all does)
	rm -rf bin dist coverage.out .cache/e2e-plugins

.PHONY: clean-all
clean-all: dev-stop clean
	rm -rf .cache
