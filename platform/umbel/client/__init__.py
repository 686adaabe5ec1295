"""A typed client of a running server, sync and async. Needs no torch.

from umbel.client import Client

with Client("http://127.0.0.1:8000") as client:
    print(client.classify("sentiment", "what a day").data[0].label)
"""

from umbel.client.asynchronous import AsyncClient
from umbel.client.client import Client

__all__ = ["AsyncClient", "Client"]
