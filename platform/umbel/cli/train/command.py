"""The command itself: tasks in, versions out."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel.cli.console import Json, Quantise, Quiet, examples, print_json, say_to_stderr
from umbel.cli.opened import open_registry
from umbel.cli.train import spread
from umbel.cli.train.begin import begin, folder_of, runs_of, was_begun
from umbel.cli.train.flags import load_parents, read_tasks, split_words
from umbel.cli.train.form import form_of_run, one_form, with_form
from umbel.cli.train.how import How, settle
from umbel.cli.train.launch import launch
from umbel.cli.train.lease import ending, holding
from umbel.cli.train.over import refuse_over, run_to_resume
from umbel.cli.train.sweep import begun_grid, check_sweep, go_on, read_grid
from umbel.core.errors import Interrupted, NotFound, UmbelError, UsageError
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.backbone.backbone import Backbone
    from umbel.cli.train.finish import Outcome
    from umbel.cli.train.spread import Mates
    from umbel.registry.registry import Registry
    from umbel.training import Task, TrainedAdapter, Tuned

app = typer.Typer(help="Train an adapter and publish it.")


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog=examples(
        "umbel train --name mood --data tweets-sentiment --task classify",
        "umbel train examples/tasks/pronounce.toml --rank 16 --epochs 2",
        "umbel train mood.toml topic.toml       (both in the same passes over one backbone)",
        "umbel train --from mood:3 --data new-rows.jsonl",
        "umbel train --name stars --data reviews.csv --task classify --text-column review --label-column stars",
        "umbel train mood.toml --gate 'accuracy>=0.8, forgetting<=0.1'",
        "umbel train mood.toml --sweep lr=1e-4,3e-4,1e-3 --sweep rank=4,8",
        "umbel train mood.toml --quantise nf4   (QLoRA: docs/quantised.md)",
        "umbel train mood.toml --train layers=last:4   (or all: the backbone itself, docs/full-fine-tuning.md)",
        "umbel train --resume mood              (or a run's id)",
        "umbel train mood.toml --nproc 2 --strategy fsdp",
        note="Every key of a task file is a flag, and so are the method's own options (--rank, --alpha, --targets, "
        "--dropout ...). docs/training.md lists them all.",
    ),
)
def train(
    words: Annotated[
        list[str] | None, typer.Argument(help="Task files; all train together.", metavar="TASK.toml")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name to publish under.")] = None,
    data: Annotated[str | None, typer.Option(help="JSONL or CSV file, folder, or dataset of the home.")] = None,
    task: Annotated[str | None, typer.Option(help="Output head: generate, classify, regress, tag or embed.")] = None,
    method: Annotated[str | None, typer.Option(help="lora (default), llama_adapter, prefix, ia3 ...")] = None,
    what: Annotated[
        str | None,
        typer.Option(
            "--train",
            metavar="WHAT",
            help="adapter (default), head, mlp-head, layers=last:4, layers=first:2, layers=3,7, layers=regex:..., all.",
        ),
    ] = None,
    embeddings: Annotated[
        bool | None, typer.Option("--train-embeddings/--no-train-embeddings", help="Also the embeddings; with all yes.")
    ] = None,
    norms: Annotated[
        bool | None, typer.Option("--train-norms/--no-train-norms", help="Also the norms; by default the layers' own.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of a trained backbone: fp32, bf16-mixed, bf16, fp16-mixed.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the training rows; 3.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, in place of epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of one step; 16.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; by rule where not given.")] = None,
    limit: Annotated[int | None, typer.Option(help="Train on the first N rows only.")] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after N validations without a better one.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides order, first weights and dropout; 0.")] = None,
    gate: Annotated[
        str | None,
        typer.Option(
            help="Promote it if 'accuracy>=0.8, forgetting<=0.1' holds; else exit code 5.", metavar="CONDITIONS"
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="Try several values, keep the best: lr=1e-4,3e-4 (may be given again), or auto.", metavar="KEY=A,B"
        ),
    ] = None,
    parent: Annotated[
        str | None, typer.Option("--from", help="Continue from this version's weights.", metavar="NAME:N")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Go on with a run that was stopped: an id or a name.", metavar="RUN")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Needed only where there are several.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the backbone: auto (default), bf16 or fp32.")] = None,
    quantise: Quantise = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    checkpointing: Annotated[
        str | None, typer.Option(help="Recompute activations: none, full, every=2, selective; less memory, slower.")
    ] = None,
    pack: Annotated[bool, typer.Option("--pack", help="Several short rows share one sequence, isolated.")] = False,
    nproc: Annotated[
        int | None, typer.Option(help="Train in N processes of this machine; torchrun for more.", metavar="N")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="ddp, fsdp, fsdp-grad-op, hsdp=N; ddp for several processes.")
    ] = None,
    wrap: Annotated[str, typer.Option(help="Units of fsdp: layer, size=1e6, modules=layers.0,...")] = "layer",
    cpu_offload: Annotated[bool, typer.Option("--cpu-offload", help="Keep fsdp's shards in CPU memory.")] = False,
    max_restarts: Annotated[int, typer.Option(help="Go on after so many deaths of a process of --nproc.")] = 0,
    save_every: Annotated[float, typer.Option(help="Seconds between checkpoints.", min=0)] = 60.0,
    queue: Annotated[bool, typer.Option("--queue", help="Leave it to a worker (umbel worker).")] = False,
    publish: Annotated[bool, typer.Option("--publish/--no-publish", help="Publish what was trained.")] = True,
    allow_noop: Annotated[bool, typer.Option("--allow-noop", hidden=True)] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train an adapter and publish it as the next version of its name.

    The plan is told before the first step. Ctrl-C saves and stops; --resume goes on. The best weights on the
    validation rows are kept, judged on held-out rows beside what can be had without training, the parent version and
    the champion, and published. With --gate the version is promoted if all conditions hold; if not, it is published,
    the champion stays, and the exit code is 5.
    """
    from umbel.cli.train.finish import fail_at_gates, finish, tell
    from umbel.cli.train.tuning import finish_tuned
    from umbel.training.data.source import look_at

    files, further = split_words(words or [])
    own = {
        "name": name, "data": data, "task": task, "method": method, "epochs": epochs, "steps": steps,
        "batch_size": batch_size, "lr": lr, "limit": limit, "patience": patience, "seed": seed, "gate": gate,
        "from": parent, "train": what, "train_embeddings": embeddings, "train_norms": norms, "precision": precision,
        "quantise": quantise,
    }  # fmt: skip
    flags = {**further, **{key: value for key, value in own.items() if value is not None}}
    settings = Settings.load()
    if resume:
        _refuse_beside_resume(files, flags)
        with open_registry() as registry:
            resume = run_to_resume(registry, settings, resume)
    tasks = None if resume else with_form(read_tasks(files, flags), settings)
    check_sweep(sweep, tasks=None if tasks is None else len(tasks), queue=queue)
    say = say_to_stderr(quiet)
    asked: dict[str, Any] = {"dtype": dtype, "checkpointing": checkpointing, "pack": pack, "backbone": backbone}
    if queue:
        return enqueue(tasks or [], asked, nproc=nproc, as_json=as_json)
    if resume and not spread.under_torchrun():
        _refuse_over(settings, resume)
    only = tasks[0] if tasks is not None and len(tasks) == 1 else None
    if only is not None and not spread.under_torchrun():  # before there are others who would tell it too
        look_at(only, settings)
    if nproc is not None and not spread.under_torchrun():
        return launch(sys.argv[1:], nproc, max_restarts=max_restarts)
    with (
        spread.over_processes(device, strategy, wrap=wrap, offload=cpu_offload) as mates,
        open_registry() as registry,
        ExitStack() as held,
    ):
        if only is not None and spread.under_torchrun():
            look_at(only, settings)
        how = settle(registry, settings, resume, **asked)
        named = how.backbone or _backbone_of(settings, resume) or _backbone_of_parent(settings, tasks)
        form = form_of_run(registry, settings, resume, quantise) if resume else one_form(tasks or [])
        loaded = spread.load(settings, named, mates, dtype=how.dtype, device=device, quantise=form)
        more: dict[str, Any] = {"checkpointing": how.checkpointing, "save_every": save_every}
        trained = _train(registry, settings, loaded, tasks, resume, mates, sweep, held, quiet=quiet, how=how, **more)
        if not mates.group.leads:
            return None
        with _told_how_to_go_on(trained):
            whole = spread.whole(loaded, mates, dtype=how.dtype, device=device)
            told: dict[str, Any] = {"publish": publish, "allow_noop": allow_noop, "say": say}
            if isinstance(trained, list):
                outcomes = finish(registry, whole, trained, **told)
            else:
                outcomes = [finish_tuned(registry, settings, whole, trained, **told)]
    if as_json:
        print_json([outcome.as_json() for outcome in outcomes])
    else:
        for outcome in outcomes:
            tell(outcome, loaded.name)
    _fail_if_any(outcomes)
    return fail_at_gates(outcomes)


def _refuse_beside_resume(files: Sequence[Path], flags: Mapping[str, Any]) -> None:
    """A run goes on as it was begun; only how it is loaded here may be said again."""
    given = [f"--{key.replace('_', '-')}" for key in flags if key != "quantise"] or [str(file) for file in files]
    if given:
        raise UsageError(
            f"{given[0]} cannot be given with --resume: the run goes on with what it was begun with.",
            param=given[0].lstrip("-"),
            hint=f"leave {given[0]} out, or start another run without --resume",
        )


def _refuse_over(settings: Settings, run: str) -> None:
    """Before a backbone is loaded. A run that the registry does not know is told where it is looked for."""
    with open_registry() as registry, suppress(NotFound):
        refuse_over(registry, settings, registry.runs.get(run))


def enqueue(tasks: "Sequence[Task]", asked: dict[str, Any], *, nproc: int | None, as_json: bool) -> None:
    """Opens a run for each task that a worker will lease. Paths are made absolute: a worker stands elsewhere."""
    if nproc is not None:
        raise UsageError("a worker trains in one process.", param="nproc", hint="leave out --queue, or --nproc")
    with open_registry() as registry:
        told = settle(registry, Settings.load(), None, **asked).told
        runs = []
        for task in tasks:
            given = task.as_json()
            here = {key: str(Path(str(given[key])).resolve()) for key in _PATHS if _is_path(given[key])}
            runs.append(registry.runs.enqueue(name=task.name, params={**given, **here, **told}, seed=task.seed))
    if as_json:
        print_json(runs)
    else:
        for run in runs:
            typer.echo(f"{run} waits for a worker: umbel worker; watch it: umbel runs logs {run} -f")


_PATHS = ("data", "validation", "test")


def _is_path(value: object) -> bool:
    return isinstance(value, str) and Path(value).exists()


@contextmanager
def _told_how_to_go_on(trained: "list[TrainedAdapter] | Tuned") -> Iterator[None]:
    """Ctrl-C after the last step: the weights are saved, and resuming judges and publishes them."""
    try:
        yield
    except KeyboardInterrupt:
        all_trained = trained if isinstance(trained, list) else [trained.trained]
        run = next(each.run for each in all_trained if each.run)
        raise Interrupted(
            "interrupted while judging; what was trained is saved.", hint=f"go on with: umbel train --resume {run}"
        ) from None


def _train(
    registry: "Registry",
    settings: Settings,
    backbone: "Backbone",
    tasks: "Sequence[Task] | None",
    run: str | None,
    mates: "Mates",
    sweep: Sequence[str] | None,
    held: ExitStack,
    *,
    quiet: bool,
    how: How,
    **further: Any,
) -> "list[TrainedAdapter] | Tuned":
    from umbel.cli.train.interrupt import stopping
    from umbel.cli.train.tuning import tune_begun, tunes
    from umbel.cli.train.watch import Watch
    from umbel.training import fit
    from umbel.training.observer import Observer
    from umbel.training.passes import Packing
    from umbel.training.runlog import OpenedRuns
    from umbel.training.sweep.sweeping import sweep as train_sweep

    group = mates.group
    watch: Observer = Watch() if group.leads and not quiet else Observer()
    grid = read_grid(tasks[0], sweep, backbone) if tasks and sweep else None
    more: dict[str, Any] = {"observer": watch, "settings": settings, "group": group, **further}
    try:
        with stopping(told=group.leads) as stop:
            begun = group.from_first(
                begin(registry, settings, tasks, run, backbone.name, grid, how) if group.leads else None
            )
            assert begun is not None
            log = OpenedRuns(registry, begun.runs) if group.leads else None
            more["packing"] = Packing(join=how.pack)
            if group.leads:
                held.enter_context(holding(registry, runs_of(begun), leased=run))
                held.enter_context(ending(registry, runs_of(begun)))
            if tunes(begun):
                return tune_begun(registry, backbone, begun, run_log=log, stop=stop, strategy=mates.strategy, **more)
            if begun.goes_on:
                return go_on(backbone, begun.folder, run_log=log, stop=stop, **more)
            more |= {"stop": stop, "folder": begun.folder}
            grid = grid or begun_grid(begun.folder)
            asked = begun.tasks if grid is None else [grid.task]
            more |= {"parents": load_parents(registry, asked, backbone)}
            if grid is not None:
                return [train_sweep(backbone, grid, run_log=log, **more)]
            return fit(backbone, begun.tasks, run_log=log, **more)
    finally:
        if isinstance(watch, Watch):
            watch.close()


def _backbone_of(settings: Settings, run: str | None) -> str | None:
    """The backbone that a run was begun on."""
    if run is None or not was_begun(settings, run):
        return None
    noted = folder_of(settings, run) / "backbone"
    return noted.read_text() if noted.is_file() else None


def _backbone_of_parent(settings: Settings, tasks: "Sequence[Task] | None") -> str | None:
    """The one that the version was made for that a task continues from."""
    from umbel.cli.choosing import backbone_of

    found = backbone_of(settings, [task.parent for task in tasks or [] if task.parent is not None])
    return None if found is None else found.name


def _fail_if_any(outcomes: "Sequence[Outcome]") -> None:
    failed = [outcome.trained for outcome in outcomes if outcome.trained.error is not None]
    if failed:
        names = ", ".join(each.task.name for each in failed)
        raise UmbelError(f"{len(failed)} of {len(outcomes)} tasks failed: {names}.", code="task_failed")
