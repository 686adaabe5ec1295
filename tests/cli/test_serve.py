import os
import signal
import socket
import subprocess
import sys

import httpx2
import pytest

from umbel.backbone import loading
from umbel.backbone.installed import Source
from umbel.backbone.tiny import tiny_backbone
from umbel.cli.known import register_backbone
from umbel.cli.serve import parse_bytes
from umbel.core.errors import UsageError
from umbel.core.settings import Settings
from umbel.server import assembly
from umbel.server.service import Capacity

READY = "umbel is ready at "
SOURCE = Source(source="folder:x", revision=None, sha256=None, licence=None, pulled_at="2026-01-31T09:05:00Z")


@pytest.fixture
def served(stocked):
    """The server as a process of its own, and the lines it said until it was ready."""
    command = [sys.executable, "-m", "umbel.cli", "serve", "--port", "0", "--preload", "mood", "--max-rows", "4"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.startswith(READY):
            break
    assert lines, process.communicate()
    assert lines[-1].startswith(READY), process.communicate()
    yield process, lines
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.mark.parametrize("given", [True, False])
def test_where_no_server_is_the_fix_says_how_to_give_its_port_or_start_one_there(run, monkeypatch, given):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nowhere = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("UMBEL_URL", nowhere)
    answer = run("ps", "--url", nowhere) if given else run("ps")
    assert answer.code == 1
    assert "umbel ps --url http://HOST:PORT" in answer.err
    assert answer.err.endswith(f"umbel serve --port {port}\n")


def test_a_server_greets_answers_and_leaves_with_0(served, run):
    process, lines = served
    url = lines[-1].removeprefix(READY)
    assert url.startswith("http://127.0.0.1:")
    assert not url.endswith(":0")
    block = "\n".join(lines)
    assert "tiny, float32" in block
    assert "mood, tone" in block
    assert f"curl {url}/v1/chat/completions" in block

    answer = httpx2.post(f"{url}/v1/classify", json={"model": "mood", "input": "hello"})
    assert answer.headers["x-umbel-adapter"] == "mood:1"

    ps = run("ps", "--url", url)
    assert ps.code == 0
    assert "mood:1" in ps.out
    assert "rows ended       2 since the start: 2 stop (whole)" in ps.out  # the one of --preload too
    asked = run("run", "mood@canary", "hello", "--url", url)
    assert asked.code == 0
    assert asked.out.splitlines()[0] in ("negative", "neutral", "positive")
    assert run("run", "nope", "hello", "--url", url).code == 3

    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "POST /v1/classify 200" in log
    assert log.index("stopping: what runs is finished first") < log.rindex("stopped")
    assert "Traceback" not in log


@pytest.fixture
def two_backbones(stocked, registry, tmp_path):
    """The home with a second backbone, ``other``, for which ``stranger:1`` was made."""
    folder = tiny_backbone(Settings.load().backbones / "other", seed=7)
    SOURCE.write(folder)
    register_backbone(Settings.load(), "other", folder, SOURCE)
    mine = registry.versions.get("mood:1")
    stored = registry.fetch(mine.digest)
    files = {file.path: stored.folder / file.path for file in mine.files}
    bound = registry.backbones.get("other").fingerprint
    registry.publish(
        files, name="stranger", method=mine.method, config=mine.config, contract=mine.contract, backbone=bound
    )
    return stocked


@pytest.mark.usefixtures("two_backbones")
def test_of_several_backbones_one_must_be_named_and_the_error_names_them(run):
    answer = run("serve", "--port", "0")
    assert answer.code == 2
    assert "--backbone other or --backbone tiny" in answer.err


@pytest.mark.usefixtures("two_backbones")
def test_the_greeting_names_what_is_not_served_and_how_to_serve_it(served):
    _, lines = served
    told = next(line for line in lines if "not served" in line)
    assert "1 adapter of other backbones: stranger (umbel serve --port 0 --backbone stranger)" in told
    assert "stranger" not in next(line for line in lines if "models" in line)


@pytest.mark.usefixtures("two_backbones")
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("serve", "--preload", "moood"), 3, "did you mean mood?"),
        (("serve", "--backbone", "tinny"), 3, "did you mean tiny?"),
        (("serve", "--backbone", "moood"), 3, "did you mean mood?"),
        (("serve", "--backbone", "mood:99"), 3, "there is no mood:99"),
        (("serve", "--backbone", "hf:org/model"), 2, "umbel pull backbone hf:org/model"),
        (("serve", "--backbone", "tiny", "--preload", "stranger"), 4, "stranger needs the backbone other, not tiny"),
        (("serve", "--preload", "mood", "--preload", "stranger"), 4, "stranger needs the backbone other, not tiny"),
        (("run", "mood", "hello", "--backbone", "other"), 4, "leave --backbone out"),
        (("run", "tiny", "hello", "--backbone", "other"), 4, "leave --backbone out"),
        (("backbones", "rm", "tinny"), 3, "did you mean tiny?"),
    ],
)
def test_names_are_looked_up_before_anything_is_loaded(run, monkeypatch, words, code, told):
    monkeypatch.setattr(loading, "load_backbone", lambda *_, **__: pytest.fail("loaded"))
    answer = run(*words, *(("--port", "0") if words[0] == "serve" else ()))
    assert answer.code == code, answer.err
    assert told in answer.err


def test_letting_other_machines_in_without_a_key_is_refused_before_anything_is_loaded(run):
    answer = run("serve", "--host", "0.0.0.0")
    assert answer.code == 2
    assert "umbel keys create" in answer.err
    assert "loading" not in answer.err


def test_a_port_that_is_taken_is_told(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = run("serve", "--port", str(port))
    assert answer.code == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use.\n" in answer.err
    assert "--port 0" in answer.err


@pytest.mark.parametrize(("words", "guesses"), [((), 5), (("--guesses", "2"), 2), (("--guesses", "0"), 0)])
def test_the_engine_is_given_what_the_flags_say(run, monkeypatch, words, guesses):
    def given(_backbone, _registry, capacity, _config):
        raise UsageError(f"{capacity}", code="seen")

    monkeypatch.setattr(assembly, "running", given)
    answer = run("serve", "--port", "0", "--max-rows", "3", "--kv-bytes", "5MB", "--adapter-bytes", "4MB", *words)
    expected = Capacity(max_rows=3, kv_bytes=5_000_000, adapter_bytes=4_000_000, guesses=guesses)
    assert str(expected) in answer.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--preload", "nope", "--port", "0"), 3),
        (("--backbone", "other"), 3),
        (("--kv-bytes", "lots"), 2),
        (("--dtype", "int3", "--port", "0"), 2),
    ],
)
def test_what_cannot_be_served_ends_with_its_exit_code(run, words, code):
    assert run("serve", *words).code == code


def test_a_home_without_a_backbone_names_the_command_that_brings_one(run, tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "empty"))
    answer = run("serve")
    assert answer.code == 3
    assert "umbel pull backbone" in answer.err


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("512", 512), ("512MB", 512_000_000), ("2GB", 2 * 10**9), ("1.5 g", 15 * 10**8), ("3kb", 3000)],
)
def test_sizes_are_read_as_people_write_them(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "2TB2", "2 parsecs", "x"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError):
        parse_bytes(text)
