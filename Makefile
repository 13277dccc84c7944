# Portcullis. `make help` says what is here.

CARGO      ?= cargo
PREFIX     ?= /usr/local
SYSCONFDIR ?= /etc
DESTDIR    ?=

BINARY  := $(or $(CARGO_TARGET_DIR),target)/release/portcullis
bindir   = $(DESTDIR)$(PREFIX)/bin
sharedir = $(DESTDIR)$(PREFIX)/share
libdir   = $(DESTDIR)$(PREFIX)/lib
confdir  = $(DESTDIR)$(SYSCONFDIR)/portcullis

.DEFAULT_GOAL := help
.PHONY: build demo help install lint test

build: ## build the release binary
	$(CARGO) build --release --locked

demo: ## show Portcullis at work before a private Redis and PostgreSQL (seconds, after the build)
	scripts/demo

test: ## install what the tests need (Debian, Ubuntu), then run every test
	scripts/install-test-tools
	$(CARGO) test --locked

lint: ## formatting, clippy, rustdoc, shell scripts, licences and advisories
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps
	scripts/check-shell
	scripts/check-dependencies

$(BINARY):
	$(MAKE) build

install: $(BINARY) ## install program, man page, completions, systemd unit and example configuration (PREFIX, SYSCONFDIR, DESTDIR)
	install -D -m 755 $(BINARY) $(bindir)/portcullis
	install -d $(sharedir)/man/man1 $(sharedir)/bash-completion/completions $(sharedir)/zsh/site-functions $(sharedir)/fish/vendor_completions.d
	$(BINARY) man > $(sharedir)/man/man1/portcullis.1
	$(BINARY) completions bash > $(sharedir)/bash-completion/completions/portcullis
	$(BINARY) completions zsh > $(sharedir)/zsh/site-functions/_portcullis
	$(BINARY) completions fish > $(sharedir)/fish/vendor_completions.d/portcullis.fish
	install -d $(libdir)/systemd/system $(libdir)/sysusers.d
	sed 's|/usr/bin/portcullis|$(PREFIX)/bin/portcullis|; s|/etc/portcullis|$(SYSCONFDIR)/portcullis|' packaging/systemd/portcullis.service > $(libdir)/systemd/system/portcullis.service
	install -m 644 packaging/systemd/portcullis.sysusers $(libdir)/sysusers.d/portcullis.conf
	install -d $(confdir)
	sed 's|"\.\./certs/|"certs/|g' config/minimal.toml > $(confdir)/portcullis.toml.example
	@echo "Next: cp $(SYSCONFDIR)/portcullis/portcullis.toml.example $(SYSCONFDIR)/portcullis/portcullis.toml, edit it, portcullis check"

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
