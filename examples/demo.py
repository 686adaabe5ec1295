"""`make demo`: the main job, end to end, on a real backbone and real data.

Trains two adapters, publishes them, serves both and the bare backbone in one batch over HTTP, trains a second version
of one, compares the two and promotes the better. Every step is a command that you can run yourself; each is printed.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import httpx2 as httpx

TASKS = Path(__file__).parent / "tasks"
BACKBONE = "smollm2-135m-instruct"
TWEETS = [
    "@united thanks so much for the quick rebooking, you made my day!",
    "Worst flight ever. Two hours on the tarmac and nobody says a word.",
    "What time does the lounge in Denver open tomorrow?",
    "I love my new phone, the camera is amazing",
]
INTERRUPTED = 130
"""Exit code of Ctrl-C."""
WORDS = ["n e u r o n ->", "k i t c h e n ->", "t h u n d e r ->", "s t a t i o n ->"]


def main() -> None:
    started = time.perf_counter()
    heading("1  Train two adapters on real data: a quick first try at sentiment, and pronunciation")
    first = train("sentiment.toml", "--rank", "4", "--limit", "1000")
    train("pronounce.toml")
    heading("2  What the registry holds now")
    umbel("adapters", "list")
    heading("3  Serve both, and the bare backbone, in one batch")
    with server() as url:
        load(url)
    heading("4  Train a second sentiment version, of another rank and on more rows, and compare")
    second = train("sentiment.toml")
    better = compare(first, second)
    heading("5  Promote the better")
    if better == champion("sentiment"):
        print(f"{better} is champion and stays it")
    else:
        umbel("promote", better, "--reason", "won the comparison on held-out rows")
    umbel("adapters", "show", "sentiment")
    minutes = (time.perf_counter() - started) / 60
    print(f"\nDone in {minutes:.1f} minutes. Everything is in {os.environ.get('UMBEL_HOME', 'your home')}; next:\n")
    print("  umbel serve                                  # and ask it with any OpenAI client")
    print("  umbel run sentiment 'what a lovely day'")
    print("  umbel adapters list --help")


def whole() -> None:
    """``main``, ended by Ctrl-C without a word of its own: the command that runs hears it too, saves and tells."""
    heard = []

    def hear(number: int, frame: FrameType | None) -> None:
        if heard:  # again: at once
            raise SystemExit(INTERRUPTED)
        heard.append(number)

    signal.signal(signal.SIGINT, hear)
    try:
        main()
    except (Exception, SystemExit):
        if not heard:
            raise
    if heard:
        sys.exit(INTERRUPTED)


def heading(text: str) -> None:
    print(f"\n{'-' * 100}\n{text}\n{'-' * 100}", flush=True)


def umbel(*words: str) -> None:
    """Runs one command, shown as a person would type it."""
    print(f"\n$ umbel {shlex.join(words)}", flush=True)
    subprocess.run(["umbel", *words], check=True)


def train(task: str, *more: str) -> str:
    """Trains and publishes one task, or goes on where that was interrupted; returns the version, ``name:3``, that the
    command tells."""
    flags = {flag.removeprefix("--"): value for flag, value in zip(more[::2], more[1::2], strict=True)}
    left = interrupted({**tomllib.loads((TASKS / task).read_text(encoding="utf-8")), **flags})
    words = ["umbel", "train", *([os.path.relpath(TASKS / task), *more] if left is None else ["--resume", left])]
    print(f"\n$ {' '.join(words)}", flush=True)
    began, version = time.perf_counter(), ""
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            if line.startswith("adapter ") and ":" in line:
                version = line.split()[1]
    if process.returncode or not version:
        raise SystemExit(f"training {task} failed with exit code {process.returncode}")
    print(f"\n  {version} took {time.perf_counter() - began:.0f} s", flush=True)
    return version


def interrupted(asked: dict[str, object]) -> str | None:
    """The newest interrupted run that was asked for this: rank and limit tell the demo's two of one name apart."""
    name = str(asked["name"])
    runs = json.loads(silently("runs", "list", "--name", name, "--status", "interrupted", "--json"))["items"]
    alike = lambda run: all(str(run["params"].get(key)) == str(asked[key]) for key in ("rank", "limit"))  # noqa: E731
    return next((run["id"] for run in runs if alike(run)), None)


def champion(name: str) -> str:
    shown = json.loads(silently("adapters", "show", name, "--json"))["adapter"]
    return f"{name}:{shown['aliases']['champion']}"


def silently(*words: str) -> str:
    return subprocess.run(["umbel", *words], check=True, text=True, stdout=subprocess.PIPE).stdout


def compare(a: str, b: str) -> str:
    """Compares on held-out rows; returns the better one, or ``a`` where the rows cannot tell."""
    words = ["umbel", "compare", a, b, "--data", "tweets-sentiment", "--limit", "1000", "--quiet"]
    print(f"\n$ {' '.join(words)}", flush=True)
    told = subprocess.run(words, check=True, text=True, stdout=subprocess.PIPE).stdout
    print(told, flush=True)
    return b if f"{b} is better" in told else a


@contextmanager
def server() -> Iterator[str]:
    """`umbel serve` on a free port, stopped by SIGTERM when the block ends."""
    print("\n$ umbel serve --port 0", flush=True)
    process = subprocess.Popen(
        ["umbel", "serve", "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield ready(process)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
        print(f"  server stopped with exit code {code}")


def ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        print("  " + line.rstrip())
        if "ready at" in line:
            threading.Thread(target=drain, args=(process,), daemon=True).start()
            return line.split("ready at")[1].split()[0]
    raise SystemExit("the server ended before it was ready")


def drain(process: subprocess.Popen[str]) -> None:
    for _ in process.stdout or ():
        pass


def load(url: str) -> None:
    """A mixed load, all at once: tweets to one adapter, words to another, chat to the bare backbone."""
    asks = [("sentiment", tweet) for tweet in TWEETS] + [("pronounce", word) for word in WORDS]
    asks += [(BACKBONE, "Name three colours.")] * 2
    with httpx.Client(base_url=url, timeout=120) as client, ThreadPoolExecutor(32) as pool:
        ask_one(client, asks[0]), ask_one(client, asks[len(TWEETS)])  # the first touch loads the adapter
        began = time.perf_counter()
        answers = list(pool.map(lambda ask: ask_one(client, ask), asks * 8))
        seconds = time.perf_counter() - began
    print(f"\n  {'asked':12} {'text':58} {'answer':34} X-Umbel-Adapter")
    for (model, text), (answer, adapter, _) in zip(asks, answers, strict=False):
        print(f"  {model[:12]:12} {text[:56]:58} {answer[:32]:34} {adapter}")
    wrong = [adapter for (model, _), (_, adapter, _) in zip(asks * 8, answers, strict=True) if model not in adapter]
    times = sorted(ms for _, _, ms in answers)
    print(
        f"\n  {len(answers)} requests over 2 adapters and the bare backbone, 32 at a time: {seconds:.1f} s, "
        f"median {times[len(times) // 2]:.0f} ms, p95 {times[int(0.95 * len(times))]:.0f} ms, "
        f"{len(wrong)} answered by another adapter"
    )
    if wrong:
        sys.exit("an adapter header was wrong")


def ask_one(client: httpx.Client, ask: tuple[str, str]) -> tuple[str, str, float]:
    """(answer, X-Umbel-Adapter, milliseconds)."""
    model, text = ask
    began = time.perf_counter()
    if model == "sentiment":
        reply = client.post("/v1/classify", json={"model": model, "input": text})
        read = lambda body: f"{body['data'][0]['label']} ({max(body['data'][0]['probs']):.2f})"  # noqa: E731
    elif model == "pronounce":
        reply = client.post("/v1/completions", json={"model": model, "prompt": text, "max_tokens": 24})
        read = lambda body: body["choices"][0]["text"]  # noqa: E731
    else:
        messages = [{"role": "user", "content": text}]
        reply = client.post("/v1/chat/completions", json={"model": model, "messages": messages, "max_tokens": 24})
        read = lambda body: body["choices"][0]["message"]["content"]  # noqa: E731
    reply.raise_for_status()
    answer = read(reply.json()).strip().replace("\n", " ")
    return answer, reply.headers["x-umbel-adapter"], 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    whole()
