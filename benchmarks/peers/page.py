"""The page of `make bench-peers`: who did how much, and how far that is from where umbel wants to be."""

from dataclasses import dataclass
from typing import Any

from benchmarks.run import BACKBONE
from benchmarks.targets.table import NOT_YET, Target
from benchmarks.work import PROMPT_TOKENS

FEW = 8
"""Requests; works with fewer are asked more often."""

COLUMNS = ("umbel", "umbel int4", "HF + PEFT", "vLLM eager", "vLLM compiled", "llama.cpp Q4_1")
VLLM = ("vLLM eager", "vLLM compiled")
_LONE = (
    "a step of one row reads all weights and does little else, and they are in three quarters of their bytes already."
)
_BARE = (
    "both multiply the same numbers in bf16. The floor is four fifths of what these cores can do at all (row b of "
    "[targets.md](targets.md) says how that is measured), what we want is all of it, and vLLM's compiled step reaches "
    "half."
)


@dataclass(frozen=True, slots=True)
class Goal:
    work: str
    own: str
    others: tuple[str, ...]
    """The best of them counts."""
    target: Target

    @classmethod
    def of(cls, work: str, own: str, others: tuple[str, ...], floor: float, want: float, bound: str = "") -> "Goal":
        name = f"{work}: {own} over {others[0].partition(' ')[0] if len(others) > 1 else others[0]}"
        return cls(work, own, others, Target(name, "", name, floor, want, "x", at_least=True, bound=bound))


GOALS = (
    Goal.of("32 requests, 8 LoRAs", "umbel", VLLM, 8, 12),
    Goal.of("32 requests, 8 LoRAs", "umbel", ("HF + PEFT",), 3.5, 5),
    Goal.of("32 requests, bare backbone", "umbel", VLLM, 1.6, 2.1, _BARE),
    Goal.of("1 request, bare backbone", "umbel", VLLM, 1.6, 2.8, _LONE),
    Goal.of("1 request, bare backbone", "umbel int4", ("llama.cpp Q4_1",), 1, 1),
)


def page(found: dict[str, Any]) -> str:
    lines = [
        "# Serving beside its peers, measured",
        "",
        f"One run, {found['when']}: `{found['command']}`. {PROMPT_TOKENS} random prompt tokens and",
        f"{found['new_tokens']} greedy tokens per request, all requests at once, {BACKBONE}, bf16; llama.cpp: its",
        "4-bit file, and bare works only, since its LoRA acts on a whole batch; umbel int4: the layers' linears in the",
        "same 4 bits, the rest in bf16. LoRA: rank 16 on all seven linears, random weights. Each system is an engine",
        "stepped by one thread, without HTTP; they take turns in every round;",
        f"medians of {found['rounds']} ({FEW * found['rounds']} where it is one request).",
        "The ratio to vLLM is to the better of its two settings, work by work (where",
        "LoRA is enabled its CPU backend compiles nothing). Figures of `serving.md` come from another run.",
        "",
        "Generated tokens per second, end to end, prefill included:",
        "",
        "| work | " + " | ".join(COLUMNS) + " | umbel / HF + PEFT | umbel / vLLM | umbel int4 / llama.cpp |",
        "| --- |" + " --- |" * (len(COLUMNS) + 3),
        *(rate_row(row) for row in found["works"]),
        "",
        *goals(found["works"]),
        "Time to first token p50 / p95, and between tokens p50 / p99, in ms (HF does not tell):",
        "",
        "| work | " + " | ".join(name for name in COLUMNS if name != "HF + PEFT") + " |",
        "| --- |" + " --- |" * (len(COLUMNS) - 1),
        *(time_row(row) for row in found["works"]),
        "",
        *failures(found["works"]),
        *versions(found),
    ]
    return "\n".join(lines) + "\n"


def goals(rows: list[dict[str, Any]]) -> list[str]:
    """Where the ratios are to be, and what bounds those that are not there."""
    works = {row["work"]: row for row in rows}
    lines, bounds = [], []
    for goal in GOALS:
        value, target = ratio(works.get(goal.work, {}), goal.own, goal.others), goal.target
        met = NOT_YET if value is None else target.met(value)
        told = "" if value is None else f"{value:.1f}x"
        lines.append(f"| {target.name} | {target.floor:g}x | {target.want:g}x | {told} | {met} |")
        if value is not None and met != "want" and target.bound:
            bounds.append(f"- **{target.name}**: {target.bound}")
    heading = ["| | floor | want | measured | met |", "| --- | --- | --- | --- | --- |"]
    return ["Where they are to be:", "", *heading, *lines, "", *bounds, *([""] if bounds else [])]


def ratio(row: dict[str, Any], own: str, others: tuple[str, ...]) -> float | None:
    """To the best of the others; None where one side was not measured."""
    rates = [float(row[name]["tokens_per_s"]) for name in others if name in row]
    return row[own]["tokens_per_s"] / max(rates) if rates and own in row else None


def rate_row(row: dict[str, Any]) -> str:
    cells = [f"{row[name]['tokens_per_s']:.0f}" if name in row else absent(row, name) for name in COLUMNS]
    pairs = [("umbel", ("HF + PEFT",)), ("umbel", VLLM), ("umbel int4", ("llama.cpp Q4_1",))]
    found = [ratio(row, own, others) for own, others in pairs]
    return (
        "| " + " | ".join([row["work"], *cells, *("" if value is None else f"{value:.1f}x" for value in found)]) + " |"
    )


def absent(row: dict[str, Any], name: str) -> str:
    return "failed" if name in row["failed"] else ""


def time_row(row: dict[str, Any]) -> str:
    def cell(name: str) -> str:
        told = row.get(name, {})
        if "ttft_p50_ms" not in told:
            return absent(row, name)
        first = f"{told['ttft_p50_ms']:.0f} / {told['ttft_p95_ms']:.0f}"
        return f"{first}, {told['gap_p50_ms']:.0f} / {told['gap_p99_ms']:.0f}"

    return "| " + " | ".join([row["work"], *(cell(name) for name in COLUMNS if name != "HF + PEFT")]) + " |"


def failures(rows: list[dict[str, Any]]) -> list[str]:
    told = [f"- {row['work']}, {name}: {why}" for row in rows for name, why in row["failed"].items()]
    return ["Failed:", "", *told, ""] if told else []


def versions(found: dict[str, Any]) -> list[str]:
    """What ran, where."""
    peers = [
        f"- {name}: {facts['version']}" + (f", torch {facts['torch']}" if "torch" in facts else "")
        for name, facts in found["peers"].items()
        if facts
    ]
    machine_line = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    idle = max((row["idle_cpu"] for row in found["works"]), default=0.0)
    return [
        "Versions (settings are in `peers.json`, the commands that install them in `scripts/peers.sh`):",
        "",
        *peers,
        "",
        f"Waiting peers took at most {idle:.1%} of a core during the others' turns.",
        "",
        f"Machine: {machine_line}.",
    ]
