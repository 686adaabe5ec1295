#!/bin/sh
# Installs umbel with some extras into a virtual environment: install.sh VENV EXTRAS [--editable]
# The Makefile and both Dockerfiles call it, so what tests run on is what an image holds.
set -eu
venv=$1 extras=$2 editable=${3:-}
cd "$(dirname "$0")/.."
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
pip="$venv/bin/pip install --quiet --disable-pip-version-check --no-input"
# torch first and pinned: a later range may otherwise bring another build of several GB
$pip "$(grep '^torch==' constraints.txt)"
if [ "$editable" = --editable ]; then
  $pip -c constraints.txt -e ".[$extras]"
else
  $pip -c constraints.txt ".[$extras]"
fi
