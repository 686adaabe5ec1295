"""Ask a running server with umbel's own client: examples/ask.py [URL [CLASSIFIER [GENERATOR]]].

Start one with `umbel serve`; the defaults are what `make demo` trains.
"""

import sys

from umbel.client import Client
from umbel.core.errors import NotFound, UmbelError


def main(url: str = "http://127.0.0.1:8000", classifier: str = "sentiment", generator: str = "pronounce") -> None:
    with Client(url) as client:
        print("models:", ", ".join(model.id for model in client.models().data))

        answer = client.classify(
            classifier, ["thanks for the quick rebooking, best flight ever!", "two hours late again"]
        )
        for row in answer.data or []:
            print(f"{classifier} says {row.label} with {max(row.probs):.2f}")

        print(f"{generator} writes:", end="", flush=True)
        for chunk in client.complete_stream(generator, "k i t c h e n ->", max_tokens=12):
            print(chunk.choices[0].text, end="", flush=True)
        print()

        for adapter in client.adapters.list():  # pages by itself
            champion = adapter.aliases.get("champion")
            print(f"registry: {adapter.name}, {f'champion is version {champion}' if champion else 'no champion yet'}")

        try:
            client.classify("nobody", "hello")
        except NotFound as error:
            print(f"an unknown adapter is an error with a code: {error.code}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UmbelError as error:  # no server there, or none of the names
        sys.exit(f"error: {error}\nusage: examples/ask.py [URL [CLASSIFIER [GENERATOR]]]")
