# make test    what a change must pass: the tests that need no server, then those against real servers and tools
# make check   formatting, lints, dependencies
# make bench   pillion beside its peers (benches/peers/README.md)
#
# Servers and tools are installed by tests/servers/install.sh into a cache outside this folder; `make clean-cache` empties it.

SHELL := /bin/bash
INSTALL := tests/servers/install.sh

# The comparison's own script is kept beside this repository.
PEERBENCH ?= ../shared/peerbench/peerbench.py
BENCH_CONFIG ?= benches/peers/pillion.yaml
BENCH_OURS ?= $(CURDIR)/target/release/pillion run --config $(CURDIR)/$(BENCH_CONFIG)
BENCH_ARGS ?=

.PHONY: test check fmt clippy deny bench clean-cache

test:
	$(INSTALL) test
	cargo test --locked
	cargo build --release --locked
	PILLION_TEST_BIN="$$($(INSTALL) bin)" PILLION_RELEASE_BIN="$(CURDIR)/target/release/pillion" cargo test --locked --features real-servers --test integration real_

check: fmt clippy deny

fmt:
	cargo fmt --check

clippy:
	cargo clippy --locked --all-targets --all-features -- -D warnings

# The advisories need a database that comes from outside the package registries: where it cannot be reached, that is said,
# and the rest is checked all the same.
deny:
	@$(INSTALL) cargo-deny
	@set -e; PATH="$$($(INSTALL) bin):$$PATH"; \
	cargo deny --all-features --locked check --hide-inclusion-graph bans licenses sources; \
	if timeout 120 cargo deny fetch db >/dev/null 2>&1; then \
	  cargo deny --all-features --locked check --hide-inclusion-graph advisories; \
	else \
	  echo "NOT CHECKED: advisories and yanked crates (the RustSec advisory database cannot be reached from here)"; \
	fi

bench:
	$(INSTALL) bench
	cargo build --release --locked
	PATH="$$($(INSTALL) bin):$$PATH" python3 $(PEERBENCH) --ours '$(BENCH_OURS)' $(BENCH_ARGS)

clean-cache:
	rm -rf "$$(dirname "$$($(INSTALL) bin)")"
