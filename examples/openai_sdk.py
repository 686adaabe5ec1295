"""The unmodified OpenAI SDK on a running server: examples/openai_sdk.py [URL [ADAPTER]].

`model` names the adapter; `with_raw_response` shows the header that says which version answered.
"""

import sys

from openai import APIConnectionError, APIStatusError, NotFoundError, OpenAI

USAGE = "usage: examples/openai_sdk.py [URL [ADAPTER]]"


def main(url: str = "http://127.0.0.1:8000", adapter: str = "pronounce") -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="unused")
    print("models:", ", ".join(model.id for model in client.models.list()))

    raw = client.completions.with_raw_response.create(model=adapter, prompt="k i t c h e n ->", max_tokens=12)
    print(f"{raw.headers['x-umbel-adapter']} writes:{raw.parse().choices[0].text}")

    print("streamed:", end="", flush=True)
    for chunk in client.completions.create(model=adapter, prompt="s u n ->", max_tokens=12, stream=True):
        print(chunk.choices[0].text, end="", flush=True)
    print()

    try:
        client.completions.create(model="nobody", prompt="hello")
    except NotFoundError as error:
        print(f"an unknown adapter is a {type(error).__name__}: {error.code}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except APIConnectionError as error:
        sys.exit(f"error: {error}\nstart a server with: umbel serve\n{USAGE}")
    except APIStatusError as error:  # such as an adapter that is not there: the server says what is
        told = error.body["message"] if isinstance(error.body, dict) else error.message
        sys.exit(f"error: {told}\n{USAGE}")
