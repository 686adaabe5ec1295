"""Many requests at once with the async client: examples/ask_many.py [URL [CLASSIFIER]].

The server puts them into one batch, whichever adapters they ask for.
"""

import asyncio
import sys
import time

from umbel.client import AsyncClient
from umbel.core.errors import UmbelError

TEXTS = ["thank you for the quick help", "never again", "when does it open?", "what a lovely day"]


async def ask(url: str = "http://127.0.0.1:8000", classifier: str = "sentiment") -> None:
    async with AsyncClient(url) as client:
        began = time.perf_counter()
        answers = await asyncio.gather(*(client.classify(classifier, text) for text in TEXTS * 8))
        seconds = time.perf_counter() - began
    for text, answer in zip(TEXTS, answers, strict=False):
        print(f"{text:32} {answer.data[0].label if answer.data else '?'}")
    print(f"{len(answers)} requests in {seconds:.2f} s")


if __name__ == "__main__":
    try:
        asyncio.run(ask(*sys.argv[1:]))
    except UmbelError as error:  # no server there, or no such adapter
        sys.exit(f"error: {error}\nusage: examples/ask_many.py [URL [CLASSIFIER]]")
