"""Repositories of a Hugging Face hub, through huggingface_hub (so its token, mirror and cache settings hold)."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from umbel.backbone.layout import PATTERNS
from umbel.core.errors import NotFound, Unavailable, UsageError


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository at one commit, which never changes."""

    repository: str
    commit: str
    licence: str | None


def resolve(reference: str) -> HubRepository:
    """``org/name`` or ``org/name@revision`` (branch, tag or commit; default ``main``) to the commit it means now.

    Raises UsageError (``invalid_reference``), NotFound (``backbone_not_found``) or Unavailable (``hub_unreachable``).
    """
    repository, _, revision = reference.partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UsageError(
            f"hf:{reference} does not name a repository.", code="invalid_reference", hint="write hf:org/name@revision"
        )
    with _plain_errors(reference):
        from huggingface_hub import HfApi

        info = HfApi().model_info(repository, revision=revision or "main")
    return HubRepository(repository, str(info.sha), info.card_data.get("license") if info.card_data else None)


def download(found: HubRepository, *, bars: bool) -> Path:
    """The snapshot's folder in the hub's own cache, with the files of a backbone only.

    ``bars`` shows progress, in a terminal.
    """
    with _plain_errors(f"{found.repository}@{found.commit}"), _bars(bars and sys.stderr.isatty()):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(found.repository, revision=found.commit, allow_patterns=list(PATTERNS)))


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _plain_errors(reference: str) -> Iterator[None]:
    try:
        import httpx2
        from huggingface_hub import errors
    except ImportError as error:
        raise Unavailable(
            "pulling from a hub needs huggingface_hub.", code="missing_extra", hint="pip install 'umbel[torch]'"
        ) from error
    try:
        yield
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise NotFound(
            f"the hub has no hf:{reference}, or not for you.",
            code="backbone_not_found",
            hint="check the name and revision; for a private or gated one run `hf auth login` first",
        ) from error
    except (OSError, httpx2.HTTPError, errors.HfHubHTTPError) as error:
        raise Unavailable(
            f"the hub did not give hf:{reference}: {str(error).splitlines()[0]}",
            code="hub_unreachable",
            hint="check the network and HF_ENDPOINT, or pull a local folder or a name of the catalog",
        ) from error
