"""What packing saves: padding and training speed of the three layouts, in turn on the same rows of real data.

    python -m benchmarks.packing [--steps 6] [--limit 600] [--data tweets-sentiment:classify pronounce:generate]

    padded     rows as they come, padded to the longest of the pass
    bucketed   rows of like length together (what `umbel train` does)
    packed     several rows in one sequence, attention isolated (`umbel train --pack`)

A LoRA of rank 8 on all linears. Tokens per second count the rows' own tokens only, forward, backward and step; the
ratio is the median over steps, which the layouts take in turn.
"""

import argparse
import time
from statistics import median

import torch

from umbel.backbone.installed import find
from umbel.backbone.loading import load_backbone
from umbel.core.settings import Settings
from umbel.training import Task
from umbel.training.passes import Packing, pack, padding
from umbel.training.prepared import prepare
from umbel.training.trainee import Trainee, trainee_of
from umbel.training.window import Machine, take_window

LAYOUTS = {"padded": Packing(bucket=False), "bucketed": Packing(), "packed": Packing(join=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--limit", type=int, default=600)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--data", nargs="+", default=["tweets-sentiment:classify", "pronounce:generate"])
    parser.add_argument("--backbone", default="smollm2-135m-instruct")
    asked = parser.parse_args()
    settings = Settings.load()
    backbone = load_backbone(find(settings, asked.backbone).folder)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {backbone.name} in {backbone.dtype}")
    print("| data | rows a step | layout | padding | tokens/s | ratio to bucketed |")
    print("| --- | --- | --- | --- | --- | --- |")
    for named in asked.data:
        data, head = named.split(":")
        for size in asked.batch_sizes:
            task = Task(
                name="p", data=data, task=head, batch_size=size, steps=asked.steps + 1, limit=asked.limit, lr=1e-4
            )
            prepared = prepare(task, backbone, settings)
            rows = {name: (Machine(backbone, each), trainee_of(prepared, backbone)) for name, each in LAYOUTS.items()}
            report(data, size, rows, asked.steps)


def report(data: str, size: int, layouts: dict[str, tuple[Machine, Trainee]], steps: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in layouts}
    waste: dict[str, list[float]] = {name: [] for name in layouts}
    tokens = []
    for _ in range(steps + 1):  # the first warms up
        for name, (machine, trainee) in layouts.items():
            seats = trainee.seats(0, trainee.next_rows())
            waste[name].append(padding(pack(seats, machine.packing)))
            start = time.perf_counter()
            take_window(machine, [trainee])
            seconds[name].append(time.perf_counter() - start)
        tokens.append(sum(seat.length for seat in seats))
    for name, spent in seconds.items():
        rate = sum(tokens[1:]) / sum(spent[1:])
        ratio = median(base / own for base, own in zip(seconds["bucketed"][1:], spent[1:], strict=True))
        print(f"| {data} | {size} | {name} | {sum(waste[name]) / len(waste[name]):.1%} | {rate:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
