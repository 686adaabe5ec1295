"""Content identity: canonical JSON and sha256, written ``sha256:<64 hex>``."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from umbel.core.courtesy import PIECE, give_way

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def canonical_json(value: Any) -> bytes:
    """The one byte string of a JSON value: sorted keys, no spaces, UTF-8, NaN refused."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest_bytes(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    return digest_bytes(canonical_json(value))


def digest_file(path: Path) -> str:
    """Streams the file, so that a shard of many GB costs no memory."""
    total, room = hashlib.sha256(), memoryview(bytearray(PIECE))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(room):
            total.update(room[:count])
            give_way()
    return "sha256:" + total.hexdigest()
