# An index of commands; what they do is in Go, in scripts and in the tools they call.
.DEFAULT_GOAL := help
SHELL := /bin/bash
CACHE := $(CURDIR)/.cache
BINARIES := sevagent bootstrap sevctl sevsim
# The platforms on which operators run sevctl. The agent's nodes have packages.
PLATFORMS := darwin-arm64 linux-amd64 linux-arm64 windows-amd64
# The build records the version of the source: hence -buildvcs, which the environment may have switched off.
BUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=auto -ldflags='-s -w'
FUZZTIME ?= 60s
RACE = $(if $(filter 1,$(shell go env CGO_ENABLED)),-race)
# Do not format hidden folders.
GOFILES = $(wildcard *.go */)
TOOLS := $(CACHE)/bin/.installed
VENV := $(CACHE)/venv/.installed
CHECKOV := $(CACHE)/checkov/.installed
BROWSER := $(CACHE)/browser/.installed

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: $(addprefix build-,$(BINARIES)) ## build all binaries into bin/

.PHONY: $(addprefix build-,$(BINARIES))
$(addprefix build-,$(BINARIES)): build-%:
	$(BUILD) -o bin/$* ./cmd/$*

.PHONY: $(addprefix build-sevctl-,$(PLATFORMS))
$(addprefix build-sevctl-,$(PLATFORMS)): build-sevctl-%:
	GOOS=$(word 1,$(subst -, ,$*)) GOARCH=$(word 2,$(subst -, ,$*)) $(BUILD) -o bin/sevctl-$*/ ./cmd/sevctl

.PHONY: demo
demo: build ## bring a simulated node up, rotate, break and verify; without root
	bin/sevsim demo

.PHONY: test
test: race lint fuzz-short test-aws test-ca test-page test-leak test-node test-rotation test-readers ## all tests, and what they need

.PHONY: race
race: ## the hermetic tests, under the race detector; lint has go vet
	@test -n '$(RACE)' || echo 'without the race detector: it needs cgo and a C compiler'
	go test -vet=off $(RACE) ./...

.PHONY: test-node
test-node: build $(TOOLS) $(VENV) ## the unmodified binaries among real peers, in a network namespace (root)
	test/run node

.PHONY: test-rotation
test-rotation: build ## 500 rotations while readers read (root)
	SEVAGENT_ROTATIONS=$${SEVAGENT_ROTATIONS:-500} test/run rotation

.PHONY: test-aws
test-aws: build $(VENV) $(CHECKOV) ## the templates, bootstrap's signals and sevctl verify, against an emulated AWS
	test/run aws

.PHONY: test-ca
test-ca: ## certificates over ACME, from an unmodified Pebble
	test/run ca

.PHONY: test-page
test-page: build $(BROWSER) ## the pages, in Chromium: content, rotations, accessibility, widths, schemes
	test/run page

.PHONY: test-leak
test-leak: build ## that no private key leaves a node: record what leaves it, and search that for the keys (root)
	test/run leak

.PHONY: test-readers
test-readers: build $(VENV) ## the recipes of docs/reading-certificates.md, as written, while certificates rotate (root)
	test/run readers

.PHONY: test-docker
test-docker: build ## containers of a real Docker that read, ask, tamper and flood (root, docker.io)
	test/run docker

.PHONY: test-system
test-system: packages lint-packages ## what lands on an AMI: the packages under systemd, Docker and real kernels (root)
	test/run system

.PHONY: stress
stress: build ## 10,000 rotations and 1,000 keys that must not leave (root), 2,000 random PKIs, 1,000 days of renewals
	test/run rotation
	SEVAGENT_ISSUANCES=1000 test/run leak
	SEVAGENT_PKIS=2000 SEVAGENT_SEED=$$RANDOM go test -count=1 -timeout 30m -run TestPeers -v ./internal/mtls/certset
	SEVAGENT_NODE_DAYS=1000 SEVAGENT_SEED=$$RANDOM go test -count=1 -timeout 30m -run TestIssuingForLong -v ./internal/mtls

.PHONY: lint
lint: $(TOOLS) ## gofmt, go vet, staticcheck, shellcheck, systemd-analyze, the import table
	@files=$$(gofmt -l $(GOFILES)) && test -z "$$files" || { echo "gofmt differs; run make fmt: $$files"; exit 1; }
	go vet ./...
	go vet -tags node,aws,system ./test/...
	@# sevctl, its tests, and what it is made of.
	GOOS=darwin GOARCH=arm64 go vet $$(go list -deps ./cmd/sevctl | grep '^sevagent/')
	GOOS=windows GOARCH=amd64 go vet $$(go list -deps ./cmd/sevctl | grep '^sevagent/')
	$(CACHE)/bin/staticcheck ./...
	$(CACHE)/bin/staticcheck -tags node,aws,system ./test/...
	@# -count=1: the test cache does not know what go list reads.
	go test -count=1 -run '^TestImports' .
	tools/shellcheck
	tools/units

.PHONY: fmt
fmt: ## format the Go code
	gofmt -w $(GOFILES)

.PHONY: bench
bench: $(VENV) ## the benchmarks
	go test -run '^$$' -bench . -benchmem ./...

.PHONY: scale
scale: ## simulate fleets, and rewrite the tables and pictures of docs/scale.md
	go test -count=1 ./test/fleet -update

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (60s)
	tools/fuzz $(FUZZTIME)

.PHONY: fuzz-short
fuzz-short: ## every fuzz target for ten seconds
	tools/fuzz 10s

.PHONY: vuln
vuln: $(TOOLS) ## known vulnerabilities in what is linked (asks the network)
	$(CACHE)/bin/govulncheck ./...

.PHONY: packages
packages: build $(TOOLS) ## deb and rpm of sevagent and sevctl, into OUT (dist); VERSION= names another version
	CACHE='$(CACHE)' OUT='$(OUT)' VERSION='$(VERSION)' tools/package packages

.PHONY: release
release: build $(addprefix build-sevctl-,$(PLATFORMS)) $(TOOLS) ## the packages, archives of sevctl, SBOMs, SHA256SUMS
	CACHE='$(CACHE)' OUT='$(OUT)' VERSION='$(VERSION)' PLATFORMS='$(PLATFORMS)' tools/package release

.PHONY: check-release
check-release: $(TOOLS) ## build the release twice, in different places; both must be the same to the byte
	CACHE='$(CACHE)' tools/package check

.PHONY: lint-packages
lint-packages: packages ## lintian, and rpmlint as nobody, on what packages makes
	tools/lint-packages '$(or $(OUT),dist)'

.PHONY: publish
publish: ## upload the packages of dist/ to S3=s3://bucket/prefix, and print the parameters for cluster.yaml
	tools/publish $(S3)

.PHONY: venv
venv: $(VENV) ## the Python programs that tests use, in .cache/venv

.PHONY: python-lock
python-lock: ## resolve tools/python/requirements.in again (PYTHON=python3.10)
	tools/python/lock

.PHONY: clean
clean: ## remove what was built; .cache/ stays
	rm -rf bin dist

$(TOOLS): tools/go.mod tools/go.sum
	cd tools && GOBIN=$(CACHE)/bin go install tool
	@touch $@

$(VENV): tools/python/requirements.lock
$(CHECKOV): tools/python/checkov.lock
$(BROWSER): tools/python/browser.lock
$(VENV) $(CHECKOV) $(BROWSER):
	rm -rf $(@D)
	python3 -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	@touch $@
