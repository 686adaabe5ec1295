"""``umbel estimate``: memory and work of a training on each process, before anything is loaded."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel.cli.console import (
    Json,
    Quantise,
    examples,
    human_bytes,
    human_count,
    human_number,
    human_seconds,
    print_facts,
    print_json,
    print_table,
)
from umbel.cli.train.flags import split_words
from umbel.core.errors import UsageError
from umbel.core.forms import read_form, told
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.backbone.config import BackboneConfig
    from umbel.training.estimate.estimate import Estimate
    from umbel.training.estimate.work import Work

app = typer.Typer(help="Tell memory before you train.")

_GROUPS = 64
"""Inputs that share a scale in the coarsest form: every real Llama has multiples of it."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog=examples(
        "umbel estimate                                     (a LoRA on the backbone of the home)",
        "umbel estimate --tflops 0.5                        (and how long a pass takes there)",
        "umbel estimate --train all --nproc 2 --strategy fsdp",
        "umbel estimate --parameters 700e6 --train all --precision fp32 --device cuda --memory 16GB",
        "umbel estimate --parameters 3e9 --train all --precision fp32 --nproc 4 --strategy fsdp --device cuda",
        "umbel estimate --parameters 7e9 --quantise nf4     (QLoRA)",
        "umbel estimate ./Llama-3.2-1B --method lora --rank 16 --batch-size 4 --length 2048",
        note="A folder needs no weights, only its config.json. A method's own options are flags, as in umbel train.",
    ),
)
def estimate(
    words: Annotated[
        list[str] | None, typer.Argument(help="Backbone of the home, or a folder.", metavar="BACKBONE")
    ] = None,
    parameters: Annotated[float | None, typer.Option(help="In place of a backbone: a Llama of that many.")] = None,
    train: Annotated[str, typer.Option(help="adapter, head, mlp-head, layers=last:4, all.")] = "adapter",
    method: Annotated[str | None, typer.Option(help="lora (default), llama_adapter, prefix ...")] = None,
    task: Annotated[str, typer.Option(help="Output head: generate, classify, regress, tag or embed.")] = "generate",
    precision: Annotated[str | None, typer.Option(help="Of a trained backbone: fp32, bf16-mixed, bf16.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the backbone: auto, bf16 or fp32.")] = "auto",
    quantise: Quantise = None,
    checkpointing: Annotated[str, typer.Option(help="none, full, every=2 or selective.")] = "none",
    nproc: Annotated[int, typer.Option(help="Processes in all.", min=1)] = 1,
    strategy: Annotated[str | None, typer.Option(help="ddp, fsdp, fsdp-grad-op, hsdp=N.")] = None,
    wrap: Annotated[str, typer.Option(help="Units of fsdp: layer, size=1e6, modules=layers.0,...")] = "layer",
    batch_size: Annotated[int, typer.Option(help="Rows of one forward pass of one process.", min=1)] = 1,
    length: Annotated[int, typer.Option(help="Tokens of each row.", min=2)] = 512,
    device: Annotated[str, typer.Option(help="cpu or cuda: there the best weights so far wait in CPU memory.")] = "cpu",
    memory: Annotated[str | None, typer.Option(help="Of each process, such as 16GB: does it fit?")] = None,
    tflops: Annotated[
        float | None, typer.Option(help="Of each process's device, 1e12 operations a second: how long is a pass?")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell memory and work before you train: weights, gradients, optimizer, activations, by process.

    The first three are counted. Activations come from one step of the real code on tensors that have a shape but no
    bytes, so any method, output head and checkpointing is told as it is. Nothing is loaded.
    """
    from umbel.training.distributed.strategy import Strategy
    from umbel.training.estimate.estimate import estimate as run
    from umbel.training.estimate.work import work_of

    names, options = split_words(words or [])
    form = read_form(quantise, Settings.load().quantise)
    config, name = _backbone(names, parameters, multiple=1 if form is None else _GROUPS)
    given = {
        "train": train,
        "task": task,
        "method": method,
        "precision": precision,
        "quantise": form,
    }
    further = options | {key: value for key, value in given.items() if value is not None}
    work = work_of(config, further, dtype=dtype, rows=batch_size, length=length, checkpointing=checkpointing)
    found = run(work, Strategy.read(strategy, nproc, wrap=wrap), on_cpu=device == "cpu")
    room = None if memory is None else _bytes(memory)
    if as_json:
        fits = None if room is None else found.peak <= room
        print_json(asdict(found) | {"backbone": name, "fits": fits, "seconds": _seconds(found, tflops)})
        return
    _tell(found, work, name, nproc, train, room)
    if (least := _seconds(found, tflops)) is not None:
        typer.echo(f"\na pass takes at least {human_seconds(least)} at {tflops:g} Tflop/s; half that speed is usual")


def _seconds(found: "Estimate", tflops: float | None) -> float | None:
    if tflops is None:
        return None
    if tflops <= 0:
        raise UsageError(f"--tflops {tflops:g} is no speed.", param="tflops", hint="such as 312 for an A100 in bf16")
    return found.operations / (1e12 * tflops)


def _backbone(names: list[Path], parameters: float | None, *, multiple: int) -> "tuple[BackboneConfig, str]":
    from umbel.backbone.config import read_config
    from umbel.training.estimate.work import llama_of

    if len(names) + (parameters is not None) > 1:
        raise UsageError("one backbone at a time: a name, a folder or --parameters.", param="backbone")
    if parameters is not None:
        return llama_of(parameters, multiple=multiple), "a Llama of that size"
    if names and names[0].is_dir():
        return read_config(names[0]), names[0].name
    from umbel.cli.choosing import choose_backbone

    found = choose_backbone(Settings.load(), str(names[0]) if names else None)
    return read_config(found.folder), found.name


def _tell(found: "Estimate", work: "Work", name: str, nproc: int, train: str, room: int | None) -> None:
    of = "" if nproc == 1 else f" on each of {nproc} processes"
    shared = f"{human_count(found.parameters)} parameters, of which {human_count(found.backbone_trained)} are trained"
    print_facts(
        [
            ("backbone", f"{name}: {shared}"),
            (
                "trains",
                f"{train if train != 'adapter' else work.method}, {human_count(found.trained)} parameters in all",
            ),
            ("dtypes", f"{_short(work.masters)} masters and optimizer, {_frozen(work)} frozen and computing"),
            ("pass", f"{human_number(work.rows, 'row')} of {human_count(work.length)} tokens, {work.output_head} head"),
            ("its work", f"{found.operations / 1e12:.3g} Tflop of matrix products, forward and backward"),
        ]
    )
    aside = ", in the CPU's memory" if found.best_aside else ""
    typer.echo(f"\nbytes of tensors{of}")
    rows = [("weights", found.weights), ("gradients", found.gradients), ("optimizer", found.optimizer)]
    rows += [(f"best weights so far{aside}", found.best), ("activations of a forward pass", found.activations)]
    rows += [("whole units and casts", found.gathered)] if found.gathered else []
    print_facts([(what, human_bytes(size)) for what, size in [*rows, ("at most together", found.peak)]])
    if found.units:
        typer.echo("\nunits")
        cells = [(unit.name, human_count(unit.parameters), human_bytes(unit.bytes)) for unit in found.units]
        print_table(("UNIT", "PARAMETERS", "GATHERED"), cells, empty="")
    if room is not None:
        over = found.peak - room
        typer.echo(
            f"\n{'does not fit' if over > 0 else 'fits'}: {human_bytes(abs(over))} {'over' if over > 0 else 'left'}"
        )


def _frozen(work: "Work") -> str:
    form = "" if work.quantised is None else f", {told(work.quantised)}"
    return _short(work.compute) + form


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _bytes(text: str) -> int:
    """``16GB``, ``900 MB``, ``16e9``."""
    plain = text.strip().lower().removesuffix("b").strip()
    unit = plain[-1:] if plain[-1:] in "kmgt" else ""
    try:
        return int(float(plain.removesuffix(unit)) * _UNITS[unit])
    except ValueError:
        raise UsageError(f"--memory {text} is no size.", param="memory", hint="such as 16GB") from None
