# Two commands are enough on a fresh Debian machine with Rust: `make demo` and `make test`.
# Run them as root or as a user with sudo: network namespaces, TUN and QEMU's jail need root.
SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH):/usr/sbin:/sbin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
IMAGE := target/guest-image/guest.qcow2
BIN := target/debug/p2pvm

.PHONY: api demo test bench bench-net bench-crates simulate figures fuzz web web-if-npm test-web \
  page build image setup lint iso iso-program iso-tools test-iso deb deb-tools test-deb test-tools test-slow \
  static screenshots install

demo: build image
	$(SUDO) $(BIN) demo --image $(IMAGE)

test: setup image page lint
	scripts/test.sh

# Builds and tests the dashboard's page, if npm is installed. It comes before the Rust build, which
# puts the page into the program.
page: setup
	@if command -v npm >/dev/null; then scripts/setup.sh web && $(MAKE) test-web; \
	else echo "test: npm is not installed: the dashboard's page and its tests are NOT RUN"; fi

# Measurements write their figures here, with all rounds; 'make figures' fills the pages from them
# (docs/figures/README.md).
FIGURES_DIR := docs/figures

bench: build image
	$(SUDO) env P2PVM_FIGURES=$(FIGURES_DIR) $(BIN) bench --image $(IMAGE)

figures:
	cargo run --locked --quiet -p p2pvm-figures

# Naming the example makes cargo take the features that the tests' dependencies want (tokio's clock
# that can be stopped): the tests of any crate, and clippy, then reuse what is compiled here.
build: setup
	cargo build --locked -p p2pvm --bin p2pvm --example shell-files

setup:
	scripts/setup.sh

image: setup
	guest-image/build.sh $(IMAGE)

lint:
	scripts/lint.sh

# Builds the bootable appliance (docs/appliance.md), in 2 to 3 minutes after the release build.
# ISO_BINARY=... takes another p2pvm.
ISO := target/appliance-image/p2pvm.iso
ISO_BINARY ?= target/release/p2pvm
iso: image iso-tools $(if $(filter target/release/p2pvm,$(ISO_BINARY)),iso-program)
	$(SUDO) appliance-image/build.sh --binary $(ISO_BINARY) --guest $(IMAGE) -o $(ISO)

iso-program: setup web-if-npm
	cargo build --locked --release -p p2pvm

iso-tools:
	scripts/setup.sh iso

# Boots the ISO in QEMU: BIOS and UEFI, CD and USB stick, an invite in every place, installing,
# cloning, guests that boot in it and move. About 20 minutes without KVM on an idle machine.
# FIGURES=docs/figures keeps the measurements.
test-iso: build iso test-tools
	$(SUDO) env PATH="$$PATH" P2PVM_TEST_ISO="$$PWD/$(ISO)" \
	  $(if $(FIGURES),P2PVM_FIGURES=$(FIGURES)) \
	  cargo nextest run --locked --profile iso -p p2pvm

# Measures the speed of p2pvm, other overlays and the bare cable (docs/speed.md), then guest to
# guest and host to host (docs/decisions/0020). ROUNDS=n and ONLY=raw,p2pvm,... change the run; with
# ONLY there are no guests.
ROUNDS ?= 3
bench-net: setup
	scripts/bench-peers.sh
	cargo build --locked --release -p p2pvm
	$(SUDO) target/release/p2pvm testbed bench-net --rounds $(ROUNDS) \
	  $(if $(ONLY),--only $(ONLY)) --figures $(FIGURES_DIR)
	$(if $(ONLY),,$(SUDO) env PATH="$$PATH" P2PVM_FIGURES=$(FIGURES_DIR) \
	  cargo bench --locked -p p2pvm-overlay --no-default-features --bench guests -- $(ROUNDS))

# Measures ciphers, allocations, what counting traffic costs (docs/speed.md) and tokens (docs/security.md) by the crates' own benches.
BENCH := $(SUDO) env PATH="$$PATH" P2PVM_FIGURES=$(FIGURES_DIR) cargo bench --locked --profile dev
bench-crates: setup
	for bench in aead alloc traffic; do $(BENCH) -p p2pvm-overlay --no-default-features --bench $$bench || exit; done
	$(BENCH) -p p2pvm-authority
	$(BENCH) -p p2pvm --bench guardian

# Simulates the ring at scale and under random faults, in virtual time (docs/scale.md).
simulate:
	cargo run --locked -p p2pvm-lab --bin p2pvm-simulate -- --members 10,100,1000,10000 \
	  --seed 1 --idle 120 --out docs/plots --figures $(FIGURES_DIR)
	cargo run --locked -p p2pvm-lab --bin p2pvm-simulate -- --faults --seeds 0..1000 \
	  --figures $(FIGURES_DIR)

# Fuzzes every wire decoder for a minute, and installs cargo-fuzz if it is missing
# (docs/hostile.md).
fuzz: setup
	P2PVM_FIGURES=$(FIGURES_DIR) tests/fuzz/run.sh 60

# Writes the API's document (api/openapi.json) and the page's types (web/src/types.ts) from the
# types and the table of operations in api/src.
api:
	P2PVM_WRITE_API=1 cargo test --locked -p p2pvm-api --lib document

# Builds the web dashboard's page, which the next build puts into the program (docs/dashboard.md).
# Only this needs Node.
web:
	cd web && npm ci --no-audit --no-fund && npm run build

# For packages, the ISO and the static file: without npm they are built without the dashboard.
web-if-npm:
	@if command -v npm >/dev/null; then $(MAKE) web; \
	else echo "web: npm is not installed: the program is built without the web dashboard"; fi

test-web: web
	cd web && npm test

# Builds a Debian package in target/debian, with the dashboard's page if npm is installed. Installs
# the build tool cargo-deb if it is missing.
deb: setup deb-tools web-if-npm
	scripts/deb.sh

deb-tools:
	scripts/tools.sh deb

test-tools:
	scripts/tools.sh nextest

# Installs the package on a clean Debian that is booted in a container, and upgrades it under a
# running VM. 2 to 4 minutes, and some more the first time, when it makes the Debian tree
# (target/debian/tree-trixie.tar).
test-deb: build image deb-tools test-tools
	scripts/setup.sh deb
	$(SUDO) env PATH="$$PATH" P2PVM_TEST_IMAGE="$$PWD/$(IMAGE)" \
	  cargo nextest run --locked --profile deb -p p2pvm

# Runs the slow tests with other programs (docs/hosts.md): every other firewall and manager of
# names, booted Debians with NetworkManager, networkd and resolved, routers that change and hosts
# that sleep, and a quarter of an hour of random events on a host. Four run at a time, because they
# mostly wait: 20 to 25 minutes, and ten more the first time, when the previous release is built.
# SEED=n gives another sequence of events. FIGURES=docs/figures keeps the measurements of
# slow_paths, slow_routers, slow_ring and slow_chaos.
SEED ?= 1
test-slow: build image test-tools previous
	scripts/setup.sh slow
	$(SUDO) env PATH="$$PATH" P2PVM_TEST_IMAGE="$$PWD/$(IMAGE)" P2PVM_CHAOS_SEED=$(SEED) \
	  P2PVM_PREVIOUS="$$(scripts/previous.sh)" \
	  $(if $(FIGURES),P2PVM_FIGURES=$(FIGURES)) \
	  cargo nextest run --locked --profile slow -p p2pvm
	TMPDIR=/dev/shm P2PVM_GC_RUNS=10000 cargo nextest run --locked --profile slow \
	  --ignore-default-filter -p p2pvm-snapshot-sync -E 'test(collections_beside_all_other_work)'

# Builds the previous release's program, with which slow_versions has members in one network.
previous: setup
	@scripts/previous.sh

# Builds one file for any Linux on this processor with any C library (docs/operating.md), and tests
# it in an empty root. 10 to 15 minutes on two processors, like the release build.
STATIC := target/static/p2pvm
static: setup web-if-npm
	scripts/static.sh build $(STATIC)
	$(SUDO) scripts/static.sh check $(STATIC)

# Takes the pictures of the status screen on a real small network (docs/screenshots/).
screenshots: build image
	$(SUDO) scripts/screenshots.sh

install: build
	install -D -m 0755 $(BIN) $(DESTDIR)/usr/bin/p2pvm
	install -D -m 0644 packaging/p2pvm.service $(DESTDIR)/lib/systemd/system/p2pvm.service
	install -D -m 0644 packaging/p2pvm-guests.service $(DESTDIR)/lib/systemd/system/p2pvm-guests.service
	install -D -m 0644 packaging/tmpfiles.conf $(DESTDIR)/lib/tmpfiles.d/p2pvm.conf
	install -D -m 0644 packaging/node.toml $(DESTDIR)/etc/p2pvm/node.toml
