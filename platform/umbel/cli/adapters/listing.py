"""``umbel adapters list``: search, filter, sort and page."""

from typing import TYPE_CHECKING, Annotated

import typer

from umbel.cli.adapters.reported import is_reported
from umbel.cli.cells import aliases, metrics
from umbel.cli.console import Json, examples, human_bytes, print_json, print_table
from umbel.cli.opened import open_registry
from umbel.cli.paging import Limit, PageCursor, more
from umbel.cli.words import one_of, pairs
from umbel.core.names import LATEST

if TYPE_CHECKING:
    from umbel.core.protocols import VersionRef
    from umbel.registry.query import AdapterQuery
    from umbel.registry.records import Adapter, Page

app = typer.Typer()

_COLUMNS = ("NAME", "VERSION", "OUTPUT HEAD", "METHOD", "SIZE", "METRIC", "ALIASES")


@app.command(
    "list",
    epilog=examples(
        "umbel adapters list",
        "umbel adapters list --search senti --output-head classify --tag team=search",
        "umbel adapters list --metric 'accuracy>=0.8' --sort metric:accuracy --desc",
        "umbel adapters list --alias canary --json",
        note="Filters hold together; those on a version look at the one shown: the champion, or --alias. A metric that "
        "is reported came along with an import; nobody measured it here.",
    ),
)
def list_(
    search: Annotated[
        str | None, typer.Option("--search", "-s", help="Part of a name, description or tag.", metavar="TEXT")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="lora, prefix ...", metavar="METHOD")] = None,
    output_head: Annotated[
        str | None, typer.Option("--output-head", help="generate, classify, regress, tag or embed.", metavar="HEAD")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="Has this tag; may be given again.", metavar="K=V")
    ] = None,
    state: Annotated[
        str | None, typer.Option("--state", help="ready, deprecated, yanked or rejected.", metavar="STATE")
    ] = None,
    backbone: Annotated[str | None, typer.Option("--backbone", help="Made for this one.", metavar="NAME")] = None,
    alias: Annotated[
        str | None, typer.Option("--alias", help="Has this alias; shows the version behind it.", metavar="ALIAS")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="Bound such as 'accuracy>=0.8'; again.", metavar="BOUND")
    ] = None,
    sort: Annotated[
        str, typer.Option("--sort", help="name, created, bytes or metric:accuracy.", metavar="KEY")
    ] = "name",
    desc: Annotated[bool, typer.Option("--desc", help="Largest or newest first.")] = False,
    limit: Limit = 50,
    page: PageCursor = None,
    as_json: Json = False,
) -> None:
    """List adapters, each by the version that its bare name means."""
    from umbel.core.contract import OutputHead
    from umbel.registry.query import AdapterQuery, MetricRange
    from umbel.registry.records import VersionState

    if method is not None:
        from umbel.adapters import catalog  # torch comes with it

        catalog.method(method)  # raises ConfigError (unknown_method)
    with open_registry() as registry:
        query = AdapterQuery(
            search=search,
            method=method,
            output_head=one_of(OutputHead, output_head, "--output-head"),
            tags=pairs(tag or ()),
            state=one_of(VersionState, state, "--state"),
            backbone=registry.backbones.get(backbone).fingerprint if backbone else None,
            alias=alias,
            metrics=tuple(MetricRange.parse(text) for text in metric or ()),
            sort=sort,
            descending=desc,
        )
        found = registry.adapters.list(query, limit=limit, cursor=page)
        shown = [adapter.shown for adapter in found.items if adapter.shown is not None]
        reported = {version.ref for version in shown if not as_json and is_reported(registry, version)}
    return print_json(found) if as_json else _print(found, query, reported)


def _print(found: "Page[Adapter]", query: "AdapterQuery", reported: "set[VersionRef]") -> None:
    from umbel.registry.query import AdapterQuery

    asked = tuple(bound.key for bound in query.metrics) or (
        (query.sort.removeprefix("metric:"),) if query.sort.startswith("metric:") else ()
    )
    unfiltered = query == AdapterQuery(sort=query.sort, descending=query.descending)
    empty = _none_yet() if unfiltered else "No adapter is like that."
    rows = [_row(adapter, asked, reported) for adapter in found.items]
    print_table(_COLUMNS, rows, empty=empty, under=("ALIASES",))
    more(found.next)


def _none_yet() -> str:
    from umbel.core.settings import Settings

    settings = Settings.load()
    way = "Train one: umbel train --help" if settings.nearby is None else f"But {settings.nearby}"
    return f"No adapter yet in {settings.home}. {way}"


def _pointers(adapter: "Adapter") -> dict[str, int]:
    """The aliases, and ``latest`` where no other tells of that version: one that waits to be promoted."""
    seen = {*adapter.aliases.values(), adapter.shown.number if adapter.shown else None}
    if adapter.latest is None or adapter.latest in seen:
        return dict(adapter.aliases)
    return {**adapter.aliases, LATEST: adapter.latest}


def _row(adapter: "Adapter", asked: tuple[str, ...], reported: "set[VersionRef]") -> tuple[object, ...]:
    version = adapter.shown
    pointing = aliases(_pointers(adapter))
    if version is None:
        return (adapter.name, "none", "", "", "", "", pointing)
    number = version.number if version.state == "ready" else f"{version.number} {version.state}"
    size, measured = human_bytes(version.bytes), metrics(version.metrics, asked, most=1)
    measured += " (reported)" if version.ref in reported else ""
    return (adapter.name, number, version.output_head, version.method, size, measured, pointing)
