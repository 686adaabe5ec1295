#!/bin/sh
# What an image needs beneath Python: an interpreter with venv where the base has none, and a user without rights.
set -eu
if ! command -v python3 >/dev/null; then
  apt-get update
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv
  rm -rf /var/lib/apt/lists/*
fi
groupadd --system --gid 10001 umbel
useradd --system --uid 10001 --gid umbel --home-dir /var/lib/umbel --create-home --shell /usr/sbin/nologin umbel
chmod 0700 /var/lib/umbel
