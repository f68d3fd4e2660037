# The front door for contributors; each target is one command that also works by itself.

CARGO_DENY := target/tools/bin/cargo-deny
CARGO_DENY_VERSION := 0.20.2
HELM := target/tools/bin/helm
MANIFESTS := daemonset/manifests
# The version is that of which Kubernetes the file is for; it decides nothing that is not named.
RENDER := $(HELM) template kube2irsa daemonset/chart --namespace kube2irsa --kube-version 1.36.0 --set namespace.create=true
CARGO_AUDITABLE := target/tools/bin/cargo-auditable
CARGO_AUDITABLE_VERSION := 0.7.7
# The time of all files of the image. Of no other target: what is built with it is built anew.
image image-root test-image: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)

.PHONY: help sandbox test docs test-clients clients manifests test-chart test-apiserver test-trust-policy test-histories test-hostile test-upgrades test-starts test-flushes test-survival lint fmt deny bench bench-scale image image-root test-image ci

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

sandbox: ## Run the main job in a cluster of network namespaces (root, or a user namespace)
	cargo run --locked --bin sandbox

test: ## Run all tests that need nothing but Rust and Debian packages (root)
	cargo test --locked

docs: ## Write docs/metrics.md from src/metrics.rs, and the lists and outputs in docs/doctor.md and docs/explain.md (root)
	KUBE2IRSA_WRITE_DOCS=1 cargo test --locked --lib the_page_for_operators
	KUBE2IRSA_WRITE_DOCS=1 cargo test --locked --test doctor --test explain the_page_for_operators

test-clients: ## Run each of other ecosystems' clients once (root, Go, Node, a JDK, Maven; minutes at first)
	cargo test --locked --test clients -- --ignored each_client

clients: ## Run the whole matrix of clients and write docs/clients.md (the same; 20 minutes)
	cargo test --locked --test clients -- --ignored --nocapture the_whole_matrix

manifests: $(HELM) ## Render the chart to daemonset/manifests/, for clusters without Helm (Go 1.26; minutes at first)
	mkdir -p $(MANIFESTS)
	$(RENDER) --set tokenAccess=node > $(MANIFESTS)/node.yaml
	$(RENDER) --set tokenAccess=direct > $(MANIFESTS)/direct.yaml
	$(RENDER) --set tokenAccess=node,mode=observe > $(MANIFESTS)/observe-node.yaml
	$(RENDER) --set tokenAccess=direct,mode=observe > $(MANIFESTS)/observe-direct.yaml
	$(RENDER) --set mode=remove > $(MANIFESTS)/remove.yaml
	for mode in node direct; do $(RENDER) --set tokenAccess=$$mode,startupTaint.enabled=true \
		--show-only templates/startup-taint.yaml > $(MANIFESTS)/startup-taint-$$mode.yaml || exit; done

test-chart: ## Test the chart: rendered, on a real API server, and with the daemon that it starts (the same as test-apiserver)
	@command -v go > /dev/null || { echo "make test-chart needs Go 1.26 or later on the PATH" >&2; exit 1; }
	cargo test --locked --test chart --test installed -- --ignored

test-apiserver: ## Run the tests on a real API server, which is built once (root, Go 1.26; minutes at first)
	@command -v go > /dev/null || { echo "make test-apiserver needs Go 1.26 or later on the PATH" >&2; exit 1; }
	cargo test --locked --test apiserver --test contract --test migrate -- --ignored

test-trust-policy: ## Let cfn-lint and an HCL parser read what trust-policy writes (root, Python, PyPI)
	cargo test --locked --test trust_policy -- --ignored

test-histories: ## Try index and schedule under ten million random histories each, sockets under a hundred thousand (an hour)
	cargo test --locked --lib ten_million_histories -- --ignored
	cargo test --locked --lib a_hundred_thousand_histories -- --ignored

test-upgrades: ## Let a hundred daemons follow each other under load (root; minutes)
	KUBE2IRSA_UPGRADES=100 cargo test --locked --test upgrade no_request_fails -- --nocapture

test-starts: ## Start and stop a hundred daemons in each way, and compare the node's rules (root; minutes)
	KUBE2IRSA_STARTS=100 cargo test --locked --test starts -- --nocapture

test-flushes: ## Take the rules away a hundred times in each of six ways under load, and say how long they were gone (root; minutes)
	KUBE2IRSA_FLUSHES=100 cargo test --locked --test interception a_flush_under_load -- --nocapture --test-threads 1

test-survival: ## Let the daemon be killed for want of memory, and stopped for long (root, cgroups with a memory controller; a minute)
	cargo test --locked --test survival -- --ignored

test-hostile: ## Send the daemon what a hostile pod might (root; 22 minutes, KUBE2IRSA_MINUTES=10 for each of two parts)
	cargo test --locked --release --test hostile -- --ignored --nocapture --test-threads 1

lint: ## Check format and lints
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings

fmt: ## Format
	cargo fmt --all

deny: $(CARGO_DENY) ## Check licences, bans and sources of dependencies
	$(CARGO_DENY) --locked check licenses bans sources

bench: ## Measure all that must be kept and write bench/results.md (root, valgrind; 8 minutes); see bench/README.md
	@command -v valgrind > /dev/null || { echo "make bench needs valgrind" >&2; exit 1; }
	cargo bench --locked --bench figures

bench-scale: ## Measure memory, watches and traffic on a full node of a large cluster and write bench/scale.md (root; 20 minutes)
	cargo bench --locked --bench scale

image: ## Build the container image (docker with BuildKit; see docs/image.md)
	docker build --build-arg SOURCE_DATE_EPOCH --build-arg REVISION=$$(git rev-parse HEAD) --tag kube2irsa:$$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml) .

image-root: $(CARGO_AUDITABLE) ## Lay out the image's root file system in target/image/root, without docker (root, mmdebstrap; minutes)
	PATH="$(CURDIR)/target/tools/bin:$$PATH" image/root.sh target/image

test-image: image-root ## Do the main job from the image's root file system in a container (root, crun, mmdebstrap; minutes)
	cargo test --locked --test image -- --include-ignored

ci: ## Do all that CI does
	.ci/run

$(HELM): tests/helm/go.mod tests/helm/go.sum
	cd tests/helm && go build -buildvcs=false -ldflags='-s -w' -o $(CURDIR)/$(HELM) helm.sh/helm/v4/cmd/helm

$(CARGO_DENY):
	cargo install --quiet --locked --root target/tools --target-dir target/tools/build --version $(CARGO_DENY_VERSION) cargo-deny
	rm -rf target/tools/build

$(CARGO_AUDITABLE):
	cargo install --quiet --locked --root target/tools --target-dir target/tools/build --version $(CARGO_AUDITABLE_VERSION) cargo-auditable
	rm -rf target/tools/build
