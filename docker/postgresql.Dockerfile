# PostgreSQL for the read model, where the official image cannot be had: Debian's package, with those of the
# official image's variables that are needed here (POSTGRES_USER, _DB, _PASSWORD_FILE).
ARG BASE=debian:bookworm-slim
FROM ${BASE}
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# One time for every file that is made here, for users too: the same packages are the same layer, built again.
ARG SOURCE_DATE_EPOCH=315532800
# hadolint ignore=DL3008 # the base's release pins the versions
RUN touch /begun \
 && groupadd --gid 10001 postgres \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/postgresql --shell /usr/sbin/nologin postgres \
 && mkdir -p /etc/postgresql-common && echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf \
 && apt-get update \
 && apt-get install -y --no-install-recommends postgresql-15 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/aux-cache /var/log/* \
      /usr/lib/postgresql/15/lib/bitcode /etc/ssl/private/ssl-cert-snakeoil.key /etc/ssl/certs/ssl-cert-snakeoil.pem \
 && install --directory --owner postgres --group postgres --mode 0700 /var/lib/postgresql/data /secrets \
 && find / -xdev -newer /begun -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} + \
 && rm /begun && touch --date "@$SOURCE_DATE_EPOCH" /
COPY docker/postgresql-start /usr/local/bin/
ENV PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin \
    PGDATA=/var/lib/postgresql/data/main \
    LANG=C.UTF-8
USER 10001:10001
WORKDIR /var/lib/postgresql
EXPOSE 5432
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=6 \
  CMD ["pg_isready", "--quiet", "--host", "127.0.0.1"]
STOPSIGNAL SIGINT
ENTRYPOINT ["postgresql-start"]

ARG VERSION=0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="mini-visa-postgresql" \
      org.opencontainers.image.description="PostgreSQL for the read model, for tests and one machine" \
      org.opencontainers.image.licenses="PostgreSQL" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
