# The front door for contributors; each target is one command that also works by itself.

CARGO_DENY := target/tools/bin/cargo-deny
CARGO_DENY_VERSION := 0.20.2

.PHONY: help sandbox test test-clients clients test-apiserver test-histories test-hostile test-upgrades test-starts test-flushes test-survival lint fmt deny bench bench-scale ci

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

sandbox: ## Run the main job in a cluster of network namespaces (root)
	cargo run --locked --bin sandbox

test: ## Run all tests that need nothing but Rust and Debian packages (root)
	cargo test --locked

test-clients: ## Run each of other ecosystems' clients once (root, Go, Node, a JDK, Maven; minutes at first)
	cargo test --locked --test clients -- --ignored each_client

clients: ## Run the whole matrix of clients and write docs/clients.md (the same; 20 minutes)
	cargo test --locked --test clients -- --ignored --nocapture the_whole_matrix

test-apiserver: ## Run the tests on a real API server, which is built once (root, Go 1.26; minutes at first)
	@command -v go > /dev/null || { echo "make test-apiserver needs Go 1.26 or later on the PATH" >&2; exit 1; }
	cargo test --locked --test apiserver --test contract -- --ignored

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

bench: ## Measure a cached request against a bare hyper server (root); see bench/README.md
	cargo bench --locked --bench cached

bench-scale: ## Measure memory, watches and traffic on a full node of a large cluster (root; 20 minutes)
	cargo bench --locked --bench scale

ci: ## Do all that CI does
	.ci/run

$(CARGO_DENY):
	cargo install --quiet --locked --root target/tools --target-dir target/tools/build --version $(CARGO_DENY_VERSION) cargo-deny
	rm -rf target/tools/build
