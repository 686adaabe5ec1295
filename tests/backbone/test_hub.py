"""Pulling from a hub: the hub's HTTP file layout on loopback, as much as huggingface_hub asks of it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from umbel.backbone.fingerprint import identity
from umbel.backbone.installed import installed
from umbel.backbone.tiny import tiny_backbone
from umbel.core.settings import Settings

REPOSITORY = "umbel-tests/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """One repository with one commit, whose branch is ``main``; ``asked`` lists the files that were wanted."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def elsewhere(self) -> str:
        """Another host's address, as a hub's large files have."""
        return f"http://localhost:{self.server_port}/blobs/"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        api, resolve, blobs = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/{COMMIT}/", "/blobs/"
        if path in (f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            self.answer_json({"id": REPOSITORY, "sha": COMMIT, "siblings": [], "cardData": {"license": "mit"}})
        elif path.startswith(f"{api}/revision/"):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif path == f"{api}/tree/{COMMIT}":
            self.answer_json([self.entry(file) for file in sorted(self.server.folder.iterdir())])
        elif path.startswith(resolve):
            self.resolve(self.server.folder / path.removeprefix(resolve))
        elif path.startswith(blobs):
            self.answer(200, (self.server.folder / path.removeprefix(blobs)).read_bytes(), {})
        else:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def entry(self, file: Path) -> dict[str, object]:
        return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": sha1(file)}

    def resolve(self, file: Path) -> None:
        if not file.is_file():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        self.server.asked.append(file.name)
        if file.suffix == ".safetensors":  # large files live elsewhere: a redirect, and headers about its target
            size = str(file.stat().st_size)
            headers = {"X-Linked-Etag": f'"{sha256(file)}"', "X-Linked-Size": size, "X-Repo-Commit": COMMIT}
            return self.answer(302, b"", {**headers, "Location": self.server.elsewhere + file.name})
        return self.answer(200, file.read_bytes(), {"ETag": f'"{sha1(file)}"', "X-Repo-Commit": COMMIT})

    def answer_json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub(folder: Path) -> Iterator[Hub]:
    with Hub(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def sha1(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def repository(tmp_path) -> Path:
    """A folder as a model's author would push it: with code and pickles that must stay outside."""
    folder = tiny_backbone(tmp_path / "repository")
    (folder / "modeling_evil.py").write_text("raise SystemExit('ran')")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (folder / "README.md").write_text("# Tiny")
    return folder


def pull(tmp_path: Path, server_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``umbel pull backbone`` in its own process, since huggingface_hub reads HF_ENDPOINT when it is imported."""
    environment = os.environ | {
        "HF_ENDPOINT": server_url,
        "HF_HOME": str(tmp_path / "hf"),
        "NO_PROXY": "127.0.0.1,localhost",
        "UMBEL_HOME": str(tmp_path / "home"),
    }
    command = [sys.executable, "-W", "error", "-m", "umbel.cli", "pull", "backbone", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_a_branch_is_pinned_to_the_commit_it_meant(tmp_path, repository):
    with hub(repository) as server:
        done = pull(tmp_path, server.url, f"hf:{REPOSITORY}@main")
    assert done.returncode == 0, done.stderr
    (backbone,) = installed(Settings.load(tmp_path / "home"))
    assert backbone.name == "tiny"
    assert backbone.source.source == f"hf:{REPOSITORY}@{COMMIT}"
    assert backbone.source.revision == COMMIT
    assert backbone.licence == "mit"
    assert identity(backbone.folder) == identity(repository)


def test_code_and_pickles_of_a_repository_are_never_asked_for(tmp_path, repository):
    with hub(repository) as server:
        pull(tmp_path, server.url, f"hf:{REPOSITORY}")
        assert set(server.asked) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    names = {path.name for path in (tmp_path / "home/backbones/tiny").iterdir()}
    assert names == {*server.asked, "umbel_source.json"}


def test_a_second_pull_downloads_nothing(tmp_path, repository):
    with hub(repository) as server:
        pull(tmp_path, server.url, f"hf:{REPOSITORY}@main")
        server.asked.clear()
        again = pull(tmp_path, server.url, f"hf:{REPOSITORY}@{COMMIT}", "--quiet")
        assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
        assert server.asked == []


@pytest.mark.parametrize("reference", [f"hf:{REPOSITORY}@gone", "hf:umbel-tests/absent"])
def test_what_the_hub_lacks_is_not_found_and_leaves_nothing(tmp_path, repository, reference):
    with hub(repository) as server:
        done = pull(tmp_path, server.url, reference)
    assert done.returncode == 3
    assert reference in done.stderr
    assert "fix:" in done.stderr
    assert installed(Settings.load(tmp_path / "home")) == []


def test_a_hub_that_does_not_answer_is_said_in_two_lines(tmp_path, repository):
    with hub(repository) as server:
        url = server.url
    done = pull(tmp_path, url, f"hf:{REPOSITORY}@main")  # nobody listens any more
    assert done.returncode == 1
    assert [line.split(":")[0].strip() for line in done.stderr.splitlines()] == ["error", "fix"]
    assert "HF_ENDPOINT" in done.stderr


def test_a_repository_with_pickles_only_is_refused_before_anything_is_kept(tmp_path, repository):
    (repository / "model.safetensors").unlink()
    with hub(repository) as server:
        done = pull(tmp_path, server.url, f"hf:{REPOSITORY}")
    assert done.returncode == 2
    assert "safetensors" in done.stderr
    assert installed(Settings.load(tmp_path / "home")) == []


def test_a_reference_without_an_organisation_is_a_usage_error(tmp_path):
    done = pull(tmp_path, "http://127.0.0.1:9", "hf:tiny")
    assert done.returncode == 2
    assert "hf:org/name@revision" in done.stderr
