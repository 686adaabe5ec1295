"""``umbel doctor``: each condition, well and ill, the illness made for real where that can be done."""

import io
import json
import os
import resource
import shutil
import socket
import sqlite3
import sys
from contextlib import closing
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from umbel.backbone.tiny import tiny_backbone
from umbel.cli import doctor
from umbel.cli.doctor import contents, home, machine
from umbel.cli.doctor.condition import Condition, State, examine, fine, warning
from umbel.cli.doctor.database import journal
from umbel.cli.doctor.patient import Patient
from umbel.core.settings import Settings
from umbel.registry.database import Database
from umbel.registry.records import Scope


@pytest.fixture
def look(stocked):
    """look("threads", mend=, host=...): the result of one condition in the stocked home."""
    patients = []

    def examined(name, *, mend=False, host="127.0.0.1", port=0, backbone=None):
        patients.append(Patient(Settings.load(checked=False), host=host, port=port, backbone=backbone))
        (condition,) = [one for one in doctor._conditions(quick=False) if one.name == name]
        return examine(condition, patients[-1], mend=mend)

    yield examined
    for patient in patients:
        patient.close()


@pytest.fixture
def empty(monkeypatch, tmp_path):
    """A home that is not there yet."""
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "new"))
    return tmp_path / "new"


def sql(stocked, statement):
    with closing(sqlite3.connect(stocked / "registry.db")) as database, database:
        database.execute(statement)


def of_a_test_machine(name):
    """Whether what a condition says depends on the machine that runs the tests, and not on the home."""
    return name in {"processor", "threads", "memory", "disk", "inodes", "open files", "fsync", "port", "home", "pip"}


# The whole


def test_a_sound_home_is_well(run):
    answer = run("doctor", "--json")
    found = json.loads(answer.out)
    ill = [one for one in found["conditions"] if one["state"] != "ok" and not of_a_test_machine(one["name"])]
    assert ill == []
    assert found["ok"] == (answer.code == 0)
    assert len(found["conditions"]) == 32


def test_a_home_that_is_not_there_stays_away(run, empty):
    found = json.loads(run("doctor", "--json").out)
    states = {one["name"]: one["state"] for one in found["conditions"]}
    assert states["home"] == "ok"
    assert states["backbones"] == "warning"
    assert {states[name] for name in ("database", "aliases", "fsync", "one token")} == {"skipped"}
    assert not empty.exists()


def test_a_failure_ends_with_1_and_a_warning_does_not(run, registry, monkeypatch):
    only = {"home", "aliases"}
    conditions = [one for one in doctor._conditions(quick=True) if one.name in only]
    monkeypatch.setattr(doctor, "_conditions", lambda quick: iter(conditions))
    os.chmod(registry.settings.home, 0o755)
    answer = run("doctor")
    assert answer.code == 0
    assert answer.err == "1 of 2 well, 1 warning, 0 failed\n"
    registry.versions.yank("mood:3", reason="leaks")
    answer = run("doctor")
    assert answer.code == 1
    assert [line.split("\t")[0] for line in answer.out.splitlines()] == ["warning", "failed"]


def test_quick_leaves_out_what_is_heavy_and_heavy_ones_come_last():
    quick, everything = list(doctor._conditions(quick=True)), list(doctor._conditions(quick=False))
    assert everything[: len(quick)] == quick
    assert all(one.heavy for one in everything[len(quick) :])
    assert not any(one.heavy for one in quick)


def test_names_are_told_apart():
    names = [one.name for one in doctor._conditions(quick=False)]
    assert len(set(names)) == len(names)


def test_a_terminal_gets_signs_and_the_fix_below(run, registry, monkeypatch):
    registry.versions.yank("mood:3", reason="leaks")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    lines = run("doctor", "--quick").out.splitlines()
    at = next(index for index, line in enumerate(lines) if "aliases" in line)
    assert "✗" in lines[at]
    assert any("fix: umbel adapters unyank mood:3" in line for line in lines[at : at + 4])


def test_a_check_that_breaks_is_a_finding_not_a_traceback(look):
    result = examine(Condition("broken", lambda _: 1 // 0), Patient(Settings.load(), host="::1", port=0))
    assert result.state is State.FAILED
    assert "ZeroDivisionError" in result.text


def test_what_could_not_be_mended_says_why(look):
    def mend(_):
        raise PermissionError("not yours")

    ill = Condition("ill", lambda _: warning("ill", "see a doctor"), mend)
    result = examine(ill, Patient(Settings.load(), host="::1", port=0), mend=True)
    assert (result.state, result.mended) == (State.WARNING, False)
    assert "not yours" in result.text


def test_what_is_well_is_not_mended():
    called = []
    well = Condition("well", lambda _: fine("well"), called.append)
    assert not examine(well, Patient(Settings.load(), host="::1", port=0), mend=True).mended
    assert called == []


# The machine


def test_an_old_python(look, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    result = look("python")
    assert (result.state, "3.9.18" in result.text) == (State.FAILED, True)


def test_a_package_out_of_its_range(look, monkeypatch, tmp_path):
    """An older rich that stands before the real one on the path."""
    (tmp_path / "rich-1.0.dist-info").mkdir()
    (tmp_path / "rich-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: rich\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    result = look("packages")
    assert result.state is State.FAILED
    assert "rich 1.0 is not >=" in result.text


def test_no_pip(look, monkeypatch):
    monkeypatch.setattr(machine, "find_spec", lambda _: None)
    assert "ensurepip" in look("pip").fix


def test_no_torch(look, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert look("torch").state is State.FAILED
    assert look("threads").state is State.SKIPPED
    assert look("processor").state is State.SKIPPED


def test_a_cuda_build_without_a_gpu(look, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "nvidia-smi" in look("torch").fix


def test_a_torch_without_onednn(look, monkeypatch):
    monkeypatch.setattr("umbel.backbone.linears.can_pack", lambda dtype, _: False)
    result = look("processor")
    assert (result.state, "oneDNN is not there" in result.text) == (State.WARNING, True)


@pytest.mark.parametrize(
    ("kernels", "state", "told"),
    [("auto", State.OK, "are multiplied as fp32"), ("off", State.WARNING, "slow without kernels")],
)
def test_a_processor_that_does_not_multiply_bf16(look, monkeypatch, kernels, state, told):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx512_bf16": False})
    monkeypatch.setenv("UMBEL_KERNELS", kernels)
    result = look("processor")
    assert (result.state, told in result.text) == (state, True)


def test_threads_that_are_set_for_other_work_are_fine_under_load(look, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert look("threads").state is State.WARNING
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert look("threads").state is State.OK


def test_more_threads_than_cores(look, monkeypatch):
    before, cores = torch.get_num_threads(), machine._cores()
    monkeypatch.setenv("OMP_NUM_THREADS", str(cores + 1))
    torch.set_num_threads(cores + 1)
    try:
        result = look("threads")
    finally:
        torch.set_num_threads(before)
    assert result.state is State.WARNING
    assert f"OMP_NUM_THREADS={cores + 1}" in result.text
    assert result.fix == f"export OMP_NUM_THREADS={cores}"


def test_cores_that_others_use(look, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    assert "load of 1000" in look("threads").text


def test_a_quota_of_the_container_counts_as_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert machine._cores() == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine._cores() == 64


@pytest.mark.parametrize(("free_kb", "state"), [(100_000, "failed"), (1_000_000, "warning"), (16_000_000, "ok")])
def test_memory_by_what_is_available(look, monkeypatch, tmp_path, free_kb, state):
    (tmp_path / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {free_kb} kB\n")
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    assert look("memory").state == state
    (tmp_path / "memory.max").write_text("1000000000")
    (tmp_path / "memory.current").write_text("999000000")
    assert look("memory").state is State.FAILED  # the container's limit is nearer


@pytest.mark.parametrize(("limit", "state"), [(128, "failed"), (512, "warning"), (2048, "ok")])
def test_open_files(look, limit, state):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        result = look("open files")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert result.state == state
    assert state == "ok" or result.fix.startswith("ulimit -n ")


def test_a_terminal_that_prints_ascii(look, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    result = look("terminal")
    assert (result.state, result.fix) == (State.WARNING, "export PYTHONUTF8=1")


def test_a_clock_that_says_1999(look, monkeypatch):
    monkeypatch.setattr(machine, "now_ms", lambda: 920_000_000_000)
    assert look("clock").state is State.FAILED


def test_a_clock_behind_the_registry(look, registry, monkeypatch):
    written = registry.versions.get("tone:1").created_at
    monkeypatch.setattr(machine, "now_ms", lambda: written - 86_400_000)
    result = look("clock")
    assert result.state is State.FAILED
    assert "the registry was written at" in result.text


@pytest.mark.parametrize(
    ("said", "does", "state"),
    [("1", True, "ok"), ("1", False, "warning"), ("maybe", False, "warning"), ("0", False, "ok")],
)
def test_offline_as_the_user_said(look, monkeypatch, said, does, state):
    monkeypatch.setenv("HF_HUB_OFFLINE", said)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", does)
    assert look("offline").state == state


# The home


def test_a_home_open_to_others_is_closed(look, stocked):
    stocked.chmod(0o755)
    assert look("home").state is State.WARNING
    assert look("home", mend=True).mended
    assert stocked.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("place", "told"), [("/proc/self", "cannot be written"), ("/proc/self/status", "is no folder")]
)
def test_a_home_that_cannot_be_written(look, monkeypatch, place, told):
    monkeypatch.setenv("UMBEL_HOME", place)
    result = look("home")
    assert (result.state, told in result.text) == (State.FAILED, True)


def test_a_home_that_cannot_be_made(look, monkeypatch):
    monkeypatch.setenv("UMBEL_HOME", "/proc/self/status/home")
    assert "cannot be made" in look("home").text


@pytest.mark.parametrize(("free", "state"), [(10**8, "failed"), (10**9, "warning"), (10**11, "ok")])
def test_disk(look, monkeypatch, free, state):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert look("disk").state == state


@pytest.mark.parametrize(
    ("files", "free", "state"), [(9, 10, "failed"), (9, 10_000, "warning"), (9, 10**7, "ok"), (0, 0, "ok")]
)
def test_inodes(look, monkeypatch, files, free, state):
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=files, f_favail=free))
    assert look("inodes").state == state


def test_the_store_is_looked_at_where_it_is(look, monkeypatch, tmp_path):
    store = tmp_path / "elsewhere"
    store.mkdir()
    monkeypatch.setenv("UMBEL_STORE_URL", str(store))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=0 if place == store else 10**12))
    assert str(store) in look("disk").text


def _broken(*_, **__):
    raise OSError(5, "Input/output error")


def test_a_disk_that_does_not_sync(look, monkeypatch):
    monkeypatch.setattr(os, "fsync", _broken)
    assert "Input/output error" in look("fsync").text


def test_a_disk_that_syncs_slowly(look, monkeypatch):
    moments = iter([0.0, 1.0])
    monkeypatch.setattr(home.time, "monotonic", lambda: next(moments))
    assert look("fsync").state is State.WARNING


def test_a_disk_without_hard_links(look, monkeypatch):
    monkeypatch.setattr(os, "link", _broken)
    assert look("links").state is State.FAILED


def test_looking_leaves_nothing_in_the_store(look, stocked):
    before = sorted(stocked.rglob("*"))
    for name in ("home", "fsync", "links", "staging", "quarantine", "file times", "artifacts", "integrity"):
        look(name)
    assert [path for path in sorted(stocked.rglob("*")) if path.suffix not in (".db-wal", ".db-shm")] == [
        path for path in before if path.suffix not in (".db-wal", ".db-shm")
    ]


def test_what_a_dead_publish_left_is_swept_and_a_young_one_is_not(look, stocked):
    dead, young = stocked / "store/staging/stage-dead", stocked / "store/staging/stage-young"
    dead.mkdir()
    young.mkdir()
    os.utime(dead, (0, 0))
    assert look("staging").state is State.WARNING
    assert look("staging", mend=True).mended
    assert not dead.exists()
    assert young.exists()


def test_a_publish_that_lives_is_no_orphan_however_old(look, registry):
    with registry.store.staged() as folder:
        os.utime(folder, (0, 0))
        assert look("staging").state is State.OK


def test_a_quarantine_with_something_in_it(look, stocked):
    (stocked / "store/quarantine/0123-bad").touch()
    assert "umbel verify --deep" in look("quarantine").fix


def test_files_of_the_future_are_dated_now(look, stocked):
    os.utime(stocked / "registry.db", (2**33, 2**33))
    result = look("file times")
    assert (result.state, "registry.db" in result.text) == (State.WARNING, True)
    assert look("file times", mend=True).mended
    assert (stocked / "registry.db").stat().st_mtime < 2**32


# The database


def test_an_older_database_is_to_be_upgraded(look, stocked):
    sql(stocked, "UPDATE alembic_version SET version_num = '0000'")
    result = look("database")
    assert (result.state, "umbel db upgrade" in result.fix) == (State.FAILED, True)
    for name in ("integrity", "aliases", "runs", "artifacts"):
        assert look(name).state is State.SKIPPED  # one illness, one finding


def test_a_file_that_is_no_database(look, stocked):
    for file in stocked.glob("registry.db*"):
        file.unlink()
    (stocked / "registry.db").write_bytes(b"no database at all" * 1000)
    result = look("database")
    assert (result.state, "umbel db backup" in result.fix) == (State.FAILED, True)
    assert look("integrity").state is State.SKIPPED


def test_a_database_server_that_does_not_answer(look, monkeypatch):
    monkeypatch.setenv("UMBEL_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    result = look("database")
    assert (result.state, "did not answer" in result.text) == (State.FAILED, True)
    assert look("journal").state is State.SKIPPED


def test_a_broken_page(look, stocked):
    sql(stocked, "PRAGMA wal_checkpoint(TRUNCATE)")
    sql(stocked, "PRAGMA journal_mode = DELETE")
    with closing(sqlite3.connect(stocked / "registry.db")) as database:
        page, size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        root = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'version_files'").fetchone()[0]
    assert root <= page
    with (stocked / "registry.db").open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)
    assert look("integrity").state is State.FAILED


def test_a_row_that_points_nowhere(look, stocked):
    sql(stocked, "UPDATE tags SET adapter_id = 999")
    assert "points nowhere" in look("integrity").text


def test_a_disk_without_a_write_ahead_log(look, monkeypatch):
    """As SQLite says it in memory, which knows no such log either."""
    patient = Patient(Settings.load(), host="::1", port=0)
    with closing(Database("sqlite://")) as database:
        patient.__dict__["reachable"] = database
        assert journal(patient).state is State.WARNING


# What the registry holds


def test_no_backbone(look, stocked):
    shutil.rmtree(stocked / "backbones/tiny")
    assert look("one token").state is State.SKIPPED
    assert "umbel pull backbone" in look("backbones").fix


def test_a_backbone_whose_files_are_gone(look, run, stocked, tmp_path):
    run("pull", "backbone", str(tiny_backbone(tmp_path / "other", seed=7)))
    shutil.rmtree(stocked / "backbones/tiny")
    result = look("backbones")
    assert (result.state, result.fix) == (State.WARNING, "umbel pull backbone tiny")


def test_a_backbone_that_the_registry_lost(look, registry):
    for name in ("mood", "tone"):
        registry.adapters.remove(name)
    registry.backbones.remove("tiny")
    assert look("backbones").state is State.WARNING
    assert look("backbones", mend=True).mended
    assert registry.backbones.get("tiny").name == "tiny"


def test_a_backbone_that_the_decoder_cannot_do(look, stocked):
    config = stocked / "backbones/tiny/config.json"
    config.write_text(config.read_text().replace('"llama"', '"gpt2"'))
    result = look("backbones")
    assert (result.state, "gpt2" in result.text) == (State.FAILED, True)


def test_a_weight_that_changed_under_its_name(look, stocked):
    weights = stocked / "backbones/tiny/model.safetensors"
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert "does not have the weights" in look("fingerprints").text


def test_a_tokenizer_that_changed(look, stocked):
    (stocked / "backbones/tiny/chat_template.jinja").write_text("{{ messages }}")
    assert "another tokenizer or chat template" in look("fingerprints").text


def test_an_alias_of_a_yanked_version(look, registry):
    registry.versions.yank("mood:1", reason="leaks")
    result = look("aliases")
    assert (result.state, "mood@champion" in result.text) == (State.FAILED, True)
    assert result.fix.startswith("umbel adapters unyank mood:1")  # nothing is before it


def test_every_page_of_adapters_is_looked_at(look, registry, monkeypatch):
    monkeypatch.setattr(contents, "_PAGE", 1)
    registry.versions.yank("tone:1", reason="leaks")
    assert "tone:1" in look("aliases").text


@pytest.mark.parametrize("data", [None, b"changed"])
def test_a_file_behind_an_alias_that_is_gone_or_changed(look, registry, data):
    path = registry.store.path(registry.versions.get("mood:3").weights_sha256)
    path.chmod(0o644)
    path.unlink() if data is None else path.write_bytes(data)
    result = look("artifacts")
    assert (result.state, "mood:3" in result.text) == (State.FAILED, True)


def test_a_run_whose_process_is_gone(look, registry, stocked):
    run = registry.start(name="mood", params={}, seed=1)
    assert look("runs").state is State.OK
    sql(stocked, "UPDATE runs SET heartbeat_at = 1")
    assert f"umbel runs resume {run} goes on" in look("runs").fix


# Serving


def test_a_port_that_is_taken(look):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = look("port", port=taken.getsockname()[1])
    assert (result.state, "umbel serve --port 0" in result.fix) == (State.WARNING, True)


def test_keys_are_needed_where_others_can_reach_the_server(look, registry):
    assert look("keys").state is State.OK
    assert "umbel keys create" in look("keys", host="0.0.0.0").fix
    key, _ = registry.keys.create("root", [Scope.ADMIN])
    assert look("keys", host="0.0.0.0").state is State.WARNING
    registry.keys.create("web", [Scope.INFER])
    assert look("keys", host="0.0.0.0").state is State.OK
    registry.keys.revoke(key.id)


def test_without_a_registry_there_is_no_key_either(look, empty):
    assert look("keys", host="0.0.0.0").state is State.FAILED


def test_the_address_is_said_as_to_serve_by_flags_alone(run, monkeypatch):
    """A cluster sets UMBEL_PORT to an address where a service is called umbel."""
    monkeypatch.setenv("UMBEL_PORT", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("UMBEL_HOST", "0.0.0.0")
    for flags, state in (((), "ok"), (("--host", "0.0.0.0"), "failed")):
        conditions = json.loads(run("doctor", "--quick", "--json", *flags).out)["conditions"]
        assert [one["state"] for one in conditions if one["name"] == "keys"] == [state]


def test_a_backbone_of_nan_gives_no_token(look, stocked):
    weights = stocked / "backbones/tiny/model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"][:] = float("nan")
    save_file(tensors, weights)
    result = look("one token")
    assert result.state is State.FAILED


def test_the_backbone_to_try_can_be_named(look):
    assert "tiny in float32" in look("one token", backbone="tiny").text
    assert look("one token", backbone="nope").state is State.FAILED


@pytest.mark.parametrize(("dtype", "state"), [("bfloat16", "warning"), ("float32", "ok")])
def test_rows_that_feel_their_company_matter_in_bf16(look, monkeypatch, dtype, state):
    report = SimpleNamespace(bit_equal=False, dtype=dtype, summary="a row's bits depend on its company")
    monkeypatch.setattr("umbel.engine.selfcheck.check_rows", lambda _: report)
    assert look("company").state == state
