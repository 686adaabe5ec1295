import os
import signal
import socket
import subprocess
import sys

import httpx2
import pytest

from umbel.cli.serve import parse_bytes
from umbel.core.errors import UsageError

READY = "umbel is ready at "


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
