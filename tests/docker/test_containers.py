"""Images and compose file, as far as they can be held to account without a Docker engine."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILES = ["serve.Dockerfile", "train.Dockerfile"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(name):
    done = subprocess.run(
        [str(Path(sys.executable).parent / "hadolint"), str(ROOT / "docker" / name)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_installs_as_the_makefile_does_and_runs_without_rights(name):
    text = (ROOT / "docker" / name).read_text()
    assert "sh scripts/install.sh" in text
    assert "sh scripts/install.sh" in (ROOT / "Makefile").read_text()
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert "HEALTHCHECK" in text
    base = re.search(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert base is not None
    assert re.search(r":\d+\.\d+", base[1]), "pinned by version"


def test_the_scripts_that_images_run_are_sound_shell():
    for script in ("scripts/install.sh", "docker/system.sh", "scripts/no_stray_init.sh"):
        subprocess.run(["sh", "-n", str(ROOT / script)], check=True)


def test_install_refuses_nothing_it_was_given_and_pins_torch_first():
    text = (ROOT / "scripts" / "install.sh").read_text()
    assert text.index("grep '^torch=='") < text.index('".[$extras]"')
    pinned = (ROOT / "constraints.txt").read_text()
    assert len(re.findall(r"^torch==", pinned, re.MULTILINE)) == 1


def test_compose_brings_a_database_a_server_and_a_worker_that_are_shut_in():
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"database", "server", "worker"}
    assert services["server"]["ports"] == ["127.0.0.1:8000:8000"], "loopback only"
    for name in ("server", "worker"):
        service = services[name]
        assert service["depends_on"]["database"]["condition"] == "service_healthy"
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert service["environment"]["UMBEL_DATABASE_URL"].startswith("postgresql+psycopg://")
    assert re.search(r":\d+\.\d+", services["database"]["image"])
    assert "pg_isready" in services["database"]["healthcheck"]["test"]


def test_every_command_of_the_images_is_one_of_the_command_line():
    from umbel.cli.commands import COMMANDS

    known = {entry.name for entry in COMMANDS}
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    used = {compose["services"]["worker"]["command"][0]}
    for name in DOCKERFILES:
        text = (ROOT / "docker" / name).read_text()
        used |= set(re.findall(r'CMD \["(\w+)"', text)) - {"python", "umbel"}
        used |= set(re.findall(r'"umbel", "(\w+)"', text))
    assert used <= known
    assert {"serve", "worker", "db"} <= used
