"""b. The share of the machine's limit that 32 requests reach end to end: the least time it could take, over the time.

Every phase needs at least max(bytes / bandwidth, operations / rate), with both rates measured in the same run:

    prefill   operations: each prompt token through all linears and its adapter's, 2 per weight; attention, 4 per
              query, key and head's width, keys before it and itself; lm_head for the last token of each row
              bytes: all weights and adapters once; keys and values written once
    decode    each step: operations of one token for each row with lm_head; bytes of all weights, all adapters and all
              keys and values so far. One step fewer than new tokens: prefill draws the first

The limit of a run is the sum over prefill and every decode step. Norms, activations, sampling and embeddings count
nothing. Bare and with 8 LoRAs in turn, 128 prompt and 64 new tokens, all submitted at once.
"""

from dataclasses import dataclass

from benchmarks.targets.bench import Bench
from benchmarks.targets.drive import ask
from benchmarks.targets.found import Found
from benchmarks.targets.machine import Machine
from benchmarks.work import NEW_TOKENS, PROMPT_TOKENS, Work, works

from umbel.core.shape import LINEARS, BackboneShape

ROW_OF = {"32 requests, bare backbone": "limit-bare", "32 requests, 8 LoRAs": "limit-8"}
_WIDTH = 2
"""Bytes of a bfloat16."""


@dataclass(frozen=True, slots=True)
class Amount:
    bytes: float
    flops: float

    def seconds(self, machine: Machine) -> float:
        return max(self.bytes / machine.bandwidth, self.flops / machine.flops)


def measure(bench: Bench) -> dict[str, Found]:
    machine = bench.machine
    known = {ROW_OF[work.name]: work for work in works(short=True) if work.name in ROW_OF}
    ready = {row: bench.in_memory(work) for row, work in known.items()}
    seconds: dict[str, list[float]] = {row: [] for row in known}
    for number in range(1 + len(bench.rounds(full=5, short=2))):
        for row, (driver, worn) in ready.items():
            asked = zip(known[row].prompts(40_000, seed=number), worn, strict=True)
            took, _ = driver.all_at_once([ask(prompt, adapter, new_tokens=NEW_TOKENS) for prompt, adapter in asked])
            if number:
                seconds[row].append(took)
        machine.probe()
    return {row: _found(bench.backbone.shape, known[row], seconds[row], machine) for row in known}


def _found(shape: BackboneShape, work: Work, seconds: list[float], machine: Machine) -> Found:
    least = sum(amount.seconds(machine) for amount in amounts(shape, work))
    found = Found.of([100 * least / took for took in seconds], "")
    tokens = work.concurrent * NEW_TOKENS
    detail = (
        f"{tokens * found.value / 100 / least:.0f} tokens/s of {tokens / least:.0f} with {machine}; "
        f"prefill alone needs {1e3 * amounts(shape, work)[0].seconds(machine):.0f} ms of {1e3 * least:.0f}"
    )
    return Found(found.value, found.low, found.high, detail)


def amounts(shape: BackboneShape, work: Work) -> list[Amount]:
    """Prefill, then every decode step, of a work whose adapters are LoRA on all seven linears."""
    rows, distinct = work.concurrent, len(work.kinds)
    linears = shape.layers * sum(a * b for a, b in map(shape.linear, LINEARS))
    adapter = _lora(shape, int(str(work.kinds[0][1]["rank"]))) if work.kinds else 0
    lm_head = shape.hidden * shape.vocab
    weights = _WIDTH * (linears + lm_head + distinct * adapter)
    key_value = _WIDTH * 2 * shape.layers * shape.kv_heads * shape.head_dim
    attend = 4 * shape.layers * shape.heads * shape.head_dim
    seen = PROMPT_TOKENS * (PROMPT_TOKENS + 1) // 2
    reading = PROMPT_TOKENS * 2 * (linears + adapter) + attend * seen + 2 * lm_head
    steps = [Amount(weights + rows * PROMPT_TOKENS * key_value, rows * reading)]
    for keys in range(PROMPT_TOKENS + 1, PROMPT_TOKENS + work.new_tokens):
        drawing = 2 * (linears + adapter + lm_head) + attend * keys
        steps.append(Amount(weights + rows * keys * key_value, rows * drawing))
    return steps


def _lora(shape: BackboneShape, rank: int) -> int:
    """Weights of one adapter."""
    return shape.layers * rank * sum(a + b for a, b in map(shape.linear, LINEARS))
