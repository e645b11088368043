# The menu of commands. Each works from a clean checkout; as root on Debian `test` installs the daemons it lacks.
.PHONY: demo test check unit e2e bench micro soak image chart clean

CARGO ?= cargo

# Show it at work: a whole cluster in one process. Arguments: make demo ARGS="--nodes 16 --rate 50mbit --compare"
demo:
	$(CARGO) run --release --quiet --bin shoal -- demo $(ARGS)

# Everything: style, unit and integration tests, and as root the end-to-end tests with real daemons, which install or build
# what they lack.
test: check unit e2e

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets --quiet -- -D warnings
	$(CARGO) clippy --release --workspace --test e2e --quiet -- -D warnings

# Builds the program too: its integration tests need it.
unit:
	$(CARGO) test --release --workspace --tests

# Builds what `unit` builds, the program among it, so that nothing is built twice.
e2e:
	$(CARGO) test --release --workspace --tests --no-run --quiet
	SHOAL_BIN=$(CURDIR)/target/release/shoal $(CARGO) test --release --workspace --test e2e

# Measures Shoal beside other systems on shaped links, as root. Arguments: make bench ARGS="--only shoal,nginx --case 4x32@8x100"
bench:
	$(CARGO) build --release --workspace --bins --quiet
	SHOAL_BIN=$(CURDIR)/target/release/shoal target/release/shoal-bench $(ARGS)

# What the data plane costs: serving and receiving beside nginx and bare loops, memory, caps; then the tracker. Some minutes; as
# root between network namespaces. Needs nginx (apt-get install nginx-light).
micro:
	$(CARGO) run --release --quiet -p shoal-e2e --bin micro -- $(ARGS)
	$(CARGO) run --release --quiet -p shoal-tracker --example announce_rate

# Half an hour of pulls by eight nodes with small stores while parts of Shoal are killed: none may fail, and nothing may grow. As root.
# Arguments: make soak ARGS="--minutes 5 --seed 7"
soak:
	$(CARGO) build --release --workspace --bins --quiet
	SHOAL_BIN=$(CURDIR)/target/release/shoal target/release/soak $(ARGS)

# The container image, for this machine's architecture, from a static program. Needs musl-tools and buildah.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
IMAGE ?= localhost/shoal:$(VERSION)
STATIC := $(shell uname -m)-unknown-linux-musl
image:
	rustup target add $(STATIC)
	$(CARGO) build --release --locked --target $(STATIC) --bin shoal
	mkdir -p target/image
	strip -o target/image/shoal target/$(STATIC)/release/shoal
	buildah build --timestamp 0 --tag $(IMAGE) --file Dockerfile target/image

# The chart with its defaults, with everything on and with every example of its README. Needs helm; kubeconform where it is.
chart:
	charts/check.sh

clean:
	$(CARGO) clean
