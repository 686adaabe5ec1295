"""What guessing ahead saves: the same requests by an engine that guesses and one that does not, in turn.

    python -m benchmarks.guesses [--rounds 3] [--tokens 128]

    tasks     eight short tasks as a chat: a story, an explanation, a summary, an extraction, a correction ...
    random    128 random tokens: a small model soon repeats itself

Requests come one or two at a time; generated tokens per second, end to end. Fails where any token differs.
"""

import argparse
import time
from statistics import median

from benchmarks.run import BACKBONE
from benchmarks.systems import InMemory
from benchmarks.targets.drive import ask, prompts

from umbel.backbone.backbone import Backbone
from umbel.backbone.installed import find
from umbel.backbone.loading import load_backbone
from umbel.backbone.native import Kernels
from umbel.core.anew import spinning, start_anew
from umbel.core.settings import Settings
from umbel.engine import Engine

GUESSES = 5
TASKS = (
    "Write a short story about a fox and a crow.",
    "Explain how a bicycle stays upright.",
    "Summarise: The town council met on Tuesday to discuss the new bridge. The bridge will cost two million euros and "
    "will be finished in 2027. Many residents asked about traffic during construction. The council said that traffic "
    "will be led over the old bridge until the new bridge is open.",
    "Extract all names as JSON from: Anna Schmidt met Peter Jones and Maria Garcia in Lisbon. Later Anna Schmidt wrote "
    "to Maria Garcia.",
    "Correct the spelling: I beleive that the goverment shoud recieve more adress informations from the commitee.",
    "Translate to French: The weather is nice today and we go to the beach.",
    "List ten animals and a fact about each of them.",
    "Write a Python function that computes the factorial of a number and one that computes the Fibonacci numbers.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    asked = parser.parse_args()
    start_anew(spinning)
    settings = Settings.load()
    kernels = Kernels.load(settings.cache / "kernels")
    backbone = load_backbone(find(settings, BACKBONE).folder, packed=True, kernels=kernels)
    works = {"tasks": _tasks(backbone), "random": prompts(len(TASKS), 128, seed=1)}
    print("| requests | at a time | without | with guesses | ratio | guesses that were right |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, texts in works.items():
        for together in (1, 2):
            print(_line(name, together, backbone, texts, asked.rounds, asked.tokens), flush=True)


def _line(name: str, together: int, backbone: Backbone, texts: list[list[int]], rounds: int, tokens: int) -> str:
    engines = [_engine(backbone, guesses) for guesses in (0, GUESSES)]
    seconds: list[list[float]] = [[], []]
    for number in range(1 + rounds):
        answers = []
        for engine, took in zip(engines, seconds, strict=True):
            start = time.perf_counter()
            answers.append(_answers(engine, texts, together, tokens))
            if number:
                took.append(time.perf_counter() - start)
        if answers[0] != answers[1]:
            raise SystemExit(f"{name}, {together} at a time: the tokens differ")
    speeds = [len(texts) * tokens / median(took) for took in seconds]
    ratio = median(plain / guessing for plain, guessing in zip(*seconds, strict=True))
    stats = engines[1].stats()
    right = stats.guessed_right / max(1, stats.guessed_tokens)
    return f"| {name} | {together} | {speeds[0]:.0f} | {speeds[1]:.0f} tokens/s | {ratio:.2f} | {right:.0%} |"


def _answers(engine: Engine, texts: list[list[int]], together: int, tokens: int) -> list[list[int]]:
    found = []
    for first in range(0, len(texts), together):
        handles = [engine.submit(ask(text, new_tokens=tokens)) for text in texts[first : first + together]]
        found += [handle.result().ids for handle in handles]
    return found


def _engine(backbone: Backbone, guesses: int) -> Engine:
    sizes = {"kv_bytes": 1 << 28, "adapter_bytes": 0, "prefix_bytes": 0, "max_length": 512}
    return Engine(backbone, InMemory(), guesses=guesses, **sizes)  # type: ignore[arg-type]


def _tasks(backbone: Backbone) -> list[list[int]]:
    tokenizer = backbone.tokenizer
    return [tokenizer.encode(f"<|im_start|>user\n{task}<|im_end|>\n<|im_start|>assistant\n") for task in TASKS]


if __name__ == "__main__":
    main()
