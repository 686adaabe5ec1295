"""The client is tested against the server's own fixtures."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("served", Path(__file__).parents[1] / "server" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_served = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_served)

settings, home, serving, client = _served.settings, _served.home, _served.serving, _served.client
live, idle, serve, wait_until = _served.live, _served.idle, _served.serve, _served.wait_until
