# docker build -t portcullis .
# docker run --rm -v "$PWD/portcullis.toml:/etc/portcullis/portcullis.toml:ro" … portcullis run
#
# The image uses glibc on distroless instead of a static musl binary. The resolver,
# the allocator and the C part of the cryptography are then the ones that the
# tests ran with. The program needs libc (2.34 or later) and libgcc_s, which
# distroless/cc has. That image has no shell, no package manager and no other
# program. The release binary was tested as user 65532 in a root directory with
# only these two libraries: names resolve, and TLS, TCP and Unix-socket upstreams
# work.
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
# The build image has the C compiler that aws-lc-sys needs. cmake is not needed. protoc
# compiles the messages of etcd.
RUN apt-get update -qq && apt-get install -qq --no-install-recommends protobuf-compiler libprotobuf-dev
RUN cargo build --release --locked --bin portcullis

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/portcullis /usr/bin/portcullis
USER 65532:65532
# Without arguments the program prints its help. The default configuration is
# /etc/portcullis/portcullis.toml. SIGTERM drains, SIGHUP reloads. If sources are
# host names (dns), mount a volume at /var/lib/portcullis that user 65532 may
# write. The last good answers then survive a restart of the container.
ENTRYPOINT ["/usr/bin/portcullis"]
