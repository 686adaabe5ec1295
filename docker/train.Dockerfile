# The worker: umbel train, and umbel worker, which leases the runs that a server was asked for.
#   docker build -f docker/train.Dockerfile -t umbel-train .
#   docker build -f docker/train.Dockerfile -t umbel-train:cpu --build-arg BASE=python:3.12.12-slim-bookworm .
ARG BASE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04
# hadolint ignore=DL3006
FROM ${BASE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY docker/system.sh /tmp/system.sh
RUN sh /tmp/system.sh && rm /tmp/system.sh

WORKDIR /opt/umbel
COPY . .
RUN sh scripts/install.sh /opt/venv train,postgres

ENV PATH=/opt/venv/bin:$PATH \
    UMBEL_HOME=/var/lib/umbel \
    HF_HUB_OFFLINE=1
USER 10001:10001
VOLUME /var/lib/umbel
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["umbel", "db", "check"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["umbel"]
CMD ["--help"]
