# make test    what a change must pass: the tests that need no server, then those against real servers and tools
# make check   formatting, lints, dependencies
# make static  the program without shared libraries, as deploy/docker/Dockerfile has it (needs rustup, and Debian's musl-tools)
# make bench   pillion beside its peers (benches/peers/README.md)
# make soak    everything at once through real registries, for SOAK_SECONDS (twenty minutes)
# make verify  every promise (tests/verify/lines.toml) on a release build, with its figures: docs/verification.md
# make fuzz    each decoder of what comes from outside on made-up bytes, for FUZZ_SECONDS (fuzz/)
#
# Servers and tools are installed by tests/servers/install.sh into a cache outside this folder; `make clean-cache` empties it.

SHELL := /bin/bash
INSTALL := tests/servers/install.sh

# The comparison's own script is kept beside this repository.
PEERBENCH ?= ../shared/peerbench/peerbench.py
BENCH_CONFIG ?= benches/peers/pillion.yaml
BENCH_OURS ?= $(CURDIR)/target/release/pillion run --config $(CURDIR)/$(BENCH_CONFIG)
BENCH_ARGS ?=

# How long each part of the tests may take, in seconds.
TEST_LIMIT ?= 3900
# Tests without servers mostly wait; those with real ones share the processors with them. More of these at a time are quicker, but where
# something else runs on the machine, leases end that somebody was about to renew.
TEST_THREADS ?= $(shell echo $$((2 * $$(nproc))))
REAL_THREADS ?= $(shell nproc)
NOT_REAL := $(patsubst tests/integration/%.rs,--skip=%::,$(wildcard tests/integration/real_*.rs))

MUSL := $(shell uname -m)-unknown-linux-musl

FUZZ_SECONDS ?= 30
SOAK_SECONDS ?= 1200
FUZZ_TARGETS ?= $(sort $(basename $(notdir $(wildcard fuzz/targets/*.rs))))

.PHONY: test check fmt clippy deny static bench soak verify fuzz clean-cache

# With all features from the start, so that nothing is built twice.
test:
	$(INSTALL) test
	cargo test --locked --all-features --no-run
	cargo build --release --locked
	tests/limited.sh $(TEST_LIMIT) cargo test --locked --all-features -- --test-threads=$(TEST_THREADS) $(NOT_REAL)
	PILLION_TEST_BIN="$$($(INSTALL) bin)" PILLION_RELEASE_BIN="$(CURDIR)/target/release/pillion" \
	tests/limited.sh $(TEST_LIMIT) cargo test --locked --all-features --test integration real_ -- --test-threads=$(REAL_THREADS)

check: fmt clippy deny

fmt:
	cargo fmt --check

clippy:
	cargo clippy --locked --all-targets --all-features -- -D warnings
	cargo clippy --locked --all-targets -- -D warnings

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

static:
	rustup target add $(MUSL)
	CC_$(subst -,_,$(MUSL))=musl-gcc cargo build --release --locked --target $(MUSL)
	@program=$${CARGO_TARGET_DIR:-target}/$(MUSL)/release/pillion; \
	if readelf --dynamic --program-headers "$$program" | grep -E 'NEEDED|INTERP'; then echo "$$program needs these" >&2; exit 1; fi; \
	echo "$$program needs nothing but the kernel"

bench:
	$(INSTALL) bench
	cargo build --release --locked
	PATH="$$($(INSTALL) bin):$$PATH" python3 $(PEERBENCH) --ours '$(BENCH_OURS)' $(BENCH_ARGS)

soak:
	$(INSTALL) test
	cargo test --locked --all-features --no-run --test integration
	cargo build --release --locked
	PILLION_TEST_BIN="$$($(INSTALL) bin)" PILLION_BIN="$(CURDIR)/target/release/pillion" SOAK_SECONDS=$(SOAK_SECONDS) \
	cargo test --locked --all-features --test integration real_soak -- --nocapture

# Inputs that lead to something new are kept in fuzz/corpus, those that make a target fail in fuzz/artifacts. Without a
# sanitizer: there is no unsafe code here for it to look at, and stable Rust has none.
# VERIFY_ARGS is passed on: --only TEXT, --no-bench.
verify:
	$(INSTALL) test
	$(INSTALL) bench
	cargo build --release --locked
	PATH="$$($(INSTALL) bin):$$PATH" PILLION_TEST_BIN="$$($(INSTALL) bin)" PILLION_RELEASE_BIN="$(CURDIR)/target/release/pillion" \
	PEERBENCH="$(PEERBENCH)" BENCH_OURS='$(BENCH_OURS)' tests/verify/verify.py --out docs/verification.md $(VERIFY_ARGS)

fuzz:
	$(INSTALL) fuzz
	cp Cargo.lock fuzz/Cargo.lock
	@set -e; export PATH="$$($(INSTALL) bin):$$PATH"; \
	cargo fuzz build --sanitizer none; \
	for target in $(FUZZ_TARGETS); do \
	  mkdir -p fuzz/corpus/$$target; \
	  cargo fuzz run --sanitizer none $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
	    -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -timeout=5 -rss_limit_mb=1024; \
	done

clean-cache:
	rm -rf "$$(dirname "$$($(INSTALL) bin)")"
