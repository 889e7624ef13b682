# Two commands do everything on a fresh Debian machine with Rust: `make demo` and `make test`.
# Network namespaces, TUN and QEMU's jail need root: run them as root, or as a user with sudo.
SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH):/usr/sbin:/sbin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
IMAGE := target/guest-image/guest.qcow2
BIN := target/debug/p2pvm

.PHONY: demo test bench bench-net simulate figures fuzz web web-if-npm test-web page build image setup lint iso iso-program iso-tools test-iso deb deb-tools test-deb test-slow static screenshots

demo: build image
	$(SUDO) $(BIN) demo --image $(IMAGE)

test: setup image page lint
	scripts/test.sh

# The dashboard's page and its tests, where there is Node; before the Rust build, which puts the page into the program.
page: setup
	@if command -v npm >/dev/null; then scripts/setup.sh web && $(MAKE) test-web; \
	else echo "test: npm is not installed: the dashboard's page and its tests are NOT RUN"; fi

# Measurements write their figures here, with all rounds; 'make figures' fills the pages from them (docs/figures/README.md).
FIGURES_DIR := docs/figures

bench: build image
	$(SUDO) env P2PVM_FIGURES=$(FIGURES_DIR) $(BIN) bench --image $(IMAGE)

figures:
	cargo run --locked --quiet -p p2pvm-figures

build: setup
	cargo build --locked -p p2pvm

setup:
	scripts/setup.sh

image: setup
	guest-image/build.sh $(IMAGE)

lint:
	scripts/lint.sh

# The bootable appliance (docs/appliance.md): 2 to 3 minutes beside the release build. ISO_BINARY=... puts another p2pvm in.
ISO := target/appliance-image/p2pvm.iso
ISO_BINARY ?= target/release/p2pvm
iso: image iso-tools $(if $(filter target/release/p2pvm,$(ISO_BINARY)),iso-program)
	$(SUDO) appliance-image/build.sh --binary $(ISO_BINARY) --guest $(IMAGE) -o $(ISO)

iso-program: setup web-if-npm
	cargo build --locked --release -p p2pvm

iso-tools:
	scripts/setup.sh iso

# The ISO in QEMU: BIOS and UEFI, CD and USB stick, an invite in every place, installing, cloning, guests that boot in it and move.
# About 20 minutes where there is no KVM and nothing else runs.
test-iso: build iso
	$(SUDO) env PATH="$$PATH" P2PVM_TEST_ISO="$$PWD/$(ISO)" cargo nextest run --locked --profile iso -p p2pvm

# How fast packets go, beside other overlays and the cable itself (docs/speed.md), then guest to guest beside host to host
# (docs/decisions/0020). ROUNDS=n and ONLY=raw,p2pvm,... change the run; with ONLY there are no guests.
ROUNDS ?= 3
bench-net: setup
	scripts/bench-peers.sh
	cargo build --locked --release -p p2pvm
	$(SUDO) target/release/p2pvm testbed bench-net --rounds $(ROUNDS) $(if $(ONLY),--only $(ONLY)) --figures $(FIGURES_DIR)
	$(if $(ONLY),,$(SUDO) env PATH="$$PATH" P2PVM_FIGURES=$(FIGURES_DIR) cargo bench --locked -p p2pvm-overlay --no-default-features --bench guests -- $(ROUNDS))

# How the ring does at scale and under random faults, in virtual time (docs/scale.md).
simulate:
	cargo run --locked -p p2pvm-tests --bin p2pvm-simulate -- --members 10,100,1000,10000 --seed 1 --idle 120 --out docs/plots --figures $(FIGURES_DIR)
	cargo run --locked -p p2pvm-tests --bin p2pvm-simulate -- --faults --seeds 0..1000 --figures $(FIGURES_DIR)

# Every wire decoder under the fuzzer for a minute each; cargo installs cargo-fuzz where it is missing (docs/hostile.md).
fuzz: setup
	P2PVM_FIGURES=$(FIGURES_DIR) tests/fuzz/run.sh 60

# The web dashboard's page, which the next build puts into the program (docs/dashboard.md). Needs Node; nothing else does.
web:
	cd web && npm ci --no-audit --no-fund && npm run build

# For what is handed out: it does without the dashboard rather than without being built.
web-if-npm:
	@if command -v npm >/dev/null; then $(MAKE) web; else echo "web: npm is not installed: there will be no web dashboard in it"; fi

test-web: web
	cd web && npm test

# A Debian package in target/debian, with the dashboard's page where there is npm. cargo-deb is a tool of the build: installed where it is missing.
deb: setup deb-tools web-if-npm
	scripts/deb.sh

deb-tools:
	cargo deb --version >/dev/null 2>&1 || cargo install --locked cargo-deb

# The package on a clean Debian that is booted in a container, with an upgrade beneath a running VM. Two minutes, and some more the
# first time, when the Debian tree is made (target/debian/tree-trixie.tar).
test-deb: build image deb-tools
	scripts/setup.sh deb
	$(SUDO) env PATH="$$PATH" P2PVM_TEST_IMAGE="$$PWD/$(IMAGE)" cargo nextest run --locked --profile deb -p p2pvm

# What takes long beside other programs (docs/hosts.md): every other firewall and manager of names, booted Debians with NetworkManager,
# networkd and resolved, routers that change and hosts that sleep, and a quarter of an hour of random events on a host. Four at a time, as
# they mostly wait: about 25 minutes; SEED=n is another sequence. FIGURES=docs/figures keeps what slow_paths and slow_routers measure.
SEED ?= 1
test-slow: build image
	scripts/setup.sh slow
	$(SUDO) env PATH="$$PATH" P2PVM_TEST_IMAGE="$$PWD/$(IMAGE)" P2PVM_CHAOS_SEED=$(SEED) $(if $(FIGURES),P2PVM_FIGURES=$(FIGURES)) cargo nextest run --locked --profile slow -p p2pvm

# One file for any Linux of this processor, whatever its C library (docs/operating.md), started in an empty root before it counts as made.
# 10 to 15 minutes on two processors, as the release build.
STATIC := target/static/p2pvm
static: setup web-if-npm
	scripts/static.sh build $(STATIC)
	$(SUDO) scripts/static.sh check $(STATIC)

# The status screen on a real small network, as docs/screenshots/ has it.
screenshots: build image
	$(SUDO) scripts/screenshots.sh

install: build
	install -D -m 0755 $(BIN) $(DESTDIR)/usr/bin/p2pvm
	install -D -m 0644 packaging/p2pvm.service $(DESTDIR)/lib/systemd/system/p2pvm.service
	install -D -m 0644 packaging/tmpfiles.conf $(DESTDIR)/lib/tmpfiles.d/p2pvm.conf
	install -D -m 0644 packaging/node.toml $(DESTDIR)/etc/p2pvm/node.toml
