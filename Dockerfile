# The service with its shipped handlers. Built in one stage, run in another, as an ordinary user.
FROM rust:1.95-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libssl-dev pkg-config make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --package sluicegate --package sluicegate-handler-relay --package sluicegate-handler-flight-delays --package sluicegate-handler-fraud-detector --package sluicegate-handler-auditor \
    && mkdir -p /out/plugins \
    && cp target/release/sluicegate /out/ \
    && cp target/release/librelay.so target/release/libflight_delays.so target/release/libfraud_detector.so target/release/libauditor.so /out/plugins/

FROM debian:12.12-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates curl libssl3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/sluicegate --create-home sluicegate
COPY --from=build /out/sluicegate /usr/local/bin/sluicegate
COPY --from=build /out/plugins /usr/lib/sluicegate/plugins
USER 10001:10001
WORKDIR /var/lib/sluicegate
EXPOSE 9600
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["curl", "--fail", "--silent", "http://127.0.0.1:9600/livez"]
ENTRYPOINT ["/usr/local/bin/sluicegate"]
CMD ["run", "-c", "/etc/sluicegate/sluicegate.yaml"]
