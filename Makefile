# Portcullis. `make help` lists the targets.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c

CARGO      ?= cargo
BENCH_ARGS ?=
PREFIX     ?= /usr/local
SYSCONFDIR ?= /etc
DESTDIR    ?=

BINARY  := $(or $(CARGO_TARGET_DIR),target)/release/portcullis
bindir   = $(DESTDIR)$(PREFIX)/bin
sharedir = $(DESTDIR)$(PREFIX)/share
libdir   = $(DESTDIR)$(PREFIX)/lib
confdir  = $(DESTDIR)$(SYSCONFDIR)/portcullis

.DEFAULT_GOAL := help
.PHONY: bench build conformance demo help install lint pictures test uninstall

bench: ## install other proxies (Debian, Ubuntu) and compare with them; about half an hour (BENCH_ARGS="--rounds 3")
	scripts/install-bench-peers
	$(CARGO) bench --locked --bench peers -- $(BENCH_ARGS)

build: ## build the release binary
	$(CARGO) build --release --locked

conformance: $(BINARY) ## run the test suites of PostgreSQL, Redis, asyncpg and psycopg 3 directly and through Portcullis (Debian; long)
	PORTCULLIS=$(BINARY) scripts/conformance

demo: ## demonstrate Portcullis in front of a private Redis and PostgreSQL (takes seconds after the build)
	scripts/demo

test: ## install the programs that the tests need (Debian, Ubuntu), then run every test
	scripts/install-test-tools chromium
	scripts/install-test-packages
	scripts/run-tests $(CARGO) test --locked

pictures: ## make the pictures of the documents from the panel's tests
	PORTCULLIS_SCREENSHOTS=$(CURDIR)/docs/images scripts/run-tests $(CARGO) test --locked --test tests -- panel::pictures_of_the_documents

lint: ## check formatting, clippy, rustdoc, shell scripts, licences and advisories
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps
	scripts/check-shell
	scripts/check-dependencies

$(BINARY):
	$(MAKE) build

install: $(BINARY) ## install the program, man page, completions, systemd unit and example configuration (PREFIX, SYSCONFDIR, DESTDIR)
	install -D -m 755 $(BINARY) $(bindir)/portcullis
	$(BINARY) man | install -D -m 644 /dev/stdin $(sharedir)/man/man1/portcullis.1
	$(BINARY) completions bash | install -D -m 644 /dev/stdin $(sharedir)/bash-completion/completions/portcullis
	$(BINARY) completions zsh | install -D -m 644 /dev/stdin $(sharedir)/zsh/site-functions/_portcullis
	$(BINARY) completions fish | install -D -m 644 /dev/stdin $(sharedir)/fish/vendor_completions.d/portcullis.fish
	sed 's|/usr/bin/portcullis|$(PREFIX)/bin/portcullis|; s|/etc/portcullis|$(SYSCONFDIR)/portcullis|' packaging/systemd/portcullis.service | install -D -m 644 /dev/stdin $(libdir)/systemd/system/portcullis.service
	install -D -m 644 packaging/systemd/portcullis.sysusers $(libdir)/sysusers.d/portcullis.conf
	install -D -m 644 packaging/systemd/portcullis.tmpfiles $(libdir)/tmpfiles.d/portcullis.conf
	sed 's|"\.\./certs/|"certs/|g; s|/etc/portcullis|$(SYSCONFDIR)/portcullis|' config/systemd.toml | install -D -m 644 /dev/stdin $(confdir)/portcullis.toml.example
	@echo "Next: follow README.md, \"Under systemd\", from $(SYSCONFDIR)/portcullis/portcullis.toml.example to a running service"

uninstall: ## remove the installed files; configuration, keys and logs stay (PREFIX, SYSCONFDIR, DESTDIR)
	rm -f $(bindir)/portcullis $(sharedir)/man/man1/portcullis.1
	rm -f $(sharedir)/bash-completion/completions/portcullis $(sharedir)/zsh/site-functions/_portcullis
	rm -f $(sharedir)/fish/vendor_completions.d/portcullis.fish
	rm -f $(libdir)/systemd/system/portcullis.service $(libdir)/sysusers.d/portcullis.conf $(libdir)/tmpfiles.d/portcullis.conf
	rm -f $(confdir)/portcullis.toml.example
	@echo "Not removed: $(SYSCONFDIR)/portcullis, /var/lib/portcullis, /var/log/portcullis and the user portcullis; remove them by hand"

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
