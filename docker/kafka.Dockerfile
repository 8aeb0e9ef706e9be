# Apache Kafka for tests and for one machine: the jars that mini_visa/broker/pom.xml names, on Debian's Java.
# It takes the same variables as the Apache project's own image (KAFKA_..., CLUSTER_ID), which can take its place.
ARG BASE=debian:bookworm-slim
FROM ${BASE}
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# One time for every file that is made here, for users too: the same packages are the same layer, built again.
ARG SOURCE_DATE_EPOCH=315532800
# hadolint ignore=DL3008 # the base's release pins the versions
RUN touch /begun \
 && mkdir -p /usr/share/man/man1 \
 && apt-get update \
 && apt-get install -y --no-install-recommends openjdk-17-jre-headless \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/aux-cache /var/log/* \
 && groupadd --gid 10001 kafka \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/kafka --shell /usr/sbin/nologin kafka \
 && install --directory --owner kafka --group kafka --mode 0700 /var/lib/kafka /var/lib/kafka/data \
 && find / -xdev -newer /begun -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} + \
 && rm /begun && touch --date "@$SOURCE_DATE_EPOCH" /
COPY build/docker/kafka /opt/kafka/libs
COPY docker/kafka-start docker/kafka-health docker/log4j2.properties /opt/kafka/
USER 10001:10001
WORKDIR /var/lib/kafka
EXPOSE 9092
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=6 CMD ["/opt/kafka/kafka-health"]
ENTRYPOINT ["/opt/kafka/kafka-start"]

ARG VERSION=0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="mini-visa-kafka" \
      org.opencontainers.image.description="Apache Kafka, one KRaft node, for tests and one machine" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
