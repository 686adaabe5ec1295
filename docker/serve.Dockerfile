# The server: umbel serve behind a health check, as a user without rights.
#   docker build -f docker/serve.Dockerfile -t umbel-serve .
#   docker build -f docker/serve.Dockerfile -t umbel-serve:cpu --build-arg BASE=python:3.12.12-slim-bookworm .
ARG BASE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04
# hadolint ignore=DL3006
FROM ${BASE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY docker/system.sh /tmp/system.sh
RUN sh /tmp/system.sh && rm /tmp/system.sh

WORKDIR /opt/umbel
COPY . .
RUN sh scripts/install.sh /opt/venv serve,postgres

ENV PATH=/opt/venv/bin:$PATH \
    UMBEL_HOME=/var/lib/umbel \
    HF_HUB_OFFLINE=1
USER 10001:10001
VOLUME /var/lib/umbel
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["umbel"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
