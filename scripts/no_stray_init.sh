#!/bin/sh
# A source root is a PEP 420 namespace: an __init__.py in one hides the other three, and platform/__init__.py
# would shadow the standard library's `platform` from the repository root.
stray=$(ls platform/__init__.py adapters/__init__.py training/__init__.py registry/__init__.py \
  platform/umbel/__init__.py adapters/umbel/__init__.py training/umbel/__init__.py registry/umbel/__init__.py 2>/dev/null
  find tests -name __init__.py 2>/dev/null)
[ -z "$stray" ] || { echo "stray __init__.py, remove: $stray" >&2; exit 1; }
