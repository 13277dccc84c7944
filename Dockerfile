# docker build -t portcullis .
# docker run --rm -v "$PWD/portcullis.toml:/etc/portcullis/portcullis.toml:ro" … portcullis run
#
# glibc on distroless and not a static musl binary: the resolver, the allocator
# and the C part of the cryptography are then the ones that the tests ran with.
# The program needs libc (2.34 or later) and libgcc_s, which distroless/cc has;
# that image has no shell, no package manager and no other program. The release
# binary was run, as user 65532, in a root directory with these two libraries
# and nothing else: names resolve, and TLS, TCP and Unix-socket upstreams work.
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
# The image brings the C compiler that aws-lc-sys wants; it needs no cmake.
RUN cargo build --release --locked --bin portcullis

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/portcullis /usr/bin/portcullis
USER 65532:65532
# With no arguments it prints its help; the configuration is looked for at
# /etc/portcullis/portcullis.toml. SIGTERM drains, SIGHUP reloads. Where
# sources are host names (dns), give it a volume at /var/lib/portcullis that
# 65532 may write: their last good answers then outlive the container.
ENTRYPOINT ["/usr/bin/portcullis"]
