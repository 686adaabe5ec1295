"""Every step of publish and gc is killed in turn, the failure one step further each time, as SQLite tests its own."""

import errno
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from umbel.core.contract import Contract, OutputHead
from umbel.core.digests import digest_bytes
from umbel.core.errors import NotFound, Unavailable
from umbel.registry.failpoints import KILLED, Point, failing
from umbel.registry.query import AdapterQuery

BACKBONE = digest_bytes(b"a backbone")
WEIGHTS = "adapter_model.safetensors"
PUBLISH = [point for point in Point if point.startswith("publish.")]
GC = [point for point in Point if point.startswith("gc.")]


class Children:
    def __init__(self, settings):
        script = str(Path(__file__).with_name("crash_child.py"))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, script], **pipes)
        self.common = {"home": str(settings.home), "database_url": settings.database_url, "backbone": BACKBONE}

    def run(self, *jobs):
        defaults = self.common | {"do": "publish", "failpoint": "", "weights": ["w"], "name": "sentiment"}
        self.process.stdin.write(json.dumps([defaults | job for job in jobs]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def children(settings, registry):
    children = Children(settings)
    yield children
    children.close()


def publish_again(registry, name, weights):
    files = {WEIGHTS: weights.encode(), "adapter_config.json": b"{}"}
    contract = Contract(output_head=OutputHead.GENERATE)
    return registry.publish(files, name=name, method="lora", config={}, contract=contract, backbone=BACKBONE)


def assert_only_whole_versions(registry, search=None):
    for adapter in registry.adapters.list(AdapterQuery(search=search), limit=1000).items:
        for version in registry.versions.list(adapter.name).items:
            assert registry.fetch(version.digest).manifest == version.manifest
    report = registry.verify(deep=True)
    assert report.clean, report.problems


def test_a_publish_that_is_killed_anywhere_leaves_whole_versions_and_can_be_repeated(registry, children):
    killed = []
    for point in PUBLISH:
        for hit in itertools.count(1):
            name = f"{point.removeprefix('publish.')}-{hit}"
            [status] = children.run({"failpoint": f"{point}:{hit}", "name": name, "weights": [name]})
            assert status in (0, KILLED)
            if status == 0:
                break
            killed.append(point)
            assert_only_whole_versions(registry, name)
            version = publish_again(registry, name, name)
            assert version.number == 1
            assert registry.resolve(name) == version.ref
    assert set(killed) == set(PUBLISH)
    assert killed.count(Point.PUBLISH_BLOB_LINKED) == 3  # weights, config and manifest, each in its turn
    registry.gc(dry_run=False, grace_ms=0)
    assert list(registry.store.staging.iterdir()) == []
    assert_only_whole_versions(registry)


def test_a_gc_that_is_killed_anywhere_harms_no_version_and_can_be_repeated(registry, children):
    killed = []
    for point in GC:
        for hit in itertools.count(1):
            name = f"{point.removeprefix('gc.')}-{hit}"
            publish_again(registry, name, name + "kept")
            publish_again(registry, name, name + "gone")
            registry.versions.remove(f"{name}:2")
            [status] = children.run({"do": "gc", "failpoint": f"{point}:{hit}"})
            assert status in (0, KILLED)
            if status == 0:
                break
            killed.append(point)
            assert_only_whole_versions(registry, name)
            registry.gc(dry_run=False, grace_ms=0)
            assert publish_again(registry, name, name + "gone").number == 2
            assert_only_whole_versions(registry, name)
    assert set(killed) == set(GC)


def test_processes_that_publish_one_new_name_at_once_all_succeed(registry, children):
    jobs = [{"weights": [f"{worker}-{turn}" for turn in range(5)]} for worker in range(4)]
    assert children.run(*jobs) == [0, 0, 0, 0]
    numbers = [version.number for version in registry.versions.list("sentiment").items]
    assert numbers == list(range(20, 0, -1))
    assert len(registry.aliases.history("sentiment")) == 1
    assert_only_whole_versions(registry)


def test_processes_that_publish_the_same_files_at_once_make_one_version(registry, children):
    assert children.run(*[{"weights": ["same"]}] * 6) == [0] * 6
    assert [version.number for version in registry.versions.list("sentiment").items] == [1]


def test_publishes_beside_an_eager_gc_lose_nothing(registry, children):
    names = [f"task{worker}" for worker in range(3)]
    jobs = [{"name": name, "weights": [f"{turn}" for turn in range(8)]} for name in names]
    assert children.run(*jobs, *[{"do": "gc"}] * 3) == [0] * 6
    for name in names:
        assert len(registry.versions.list(name).items) == 8
    assert_only_whole_versions(registry)


def test_a_blob_that_gc_takes_in_the_middle_of_a_publish_is_put_again(registry, publish):
    publish(weights=b"1")
    publish(weights=b"2")
    registry.versions.remove("sentiment:2")
    swept = []

    def sweep(_):  # after the blobs of the first try were put, before their rows are written
        if not swept:
            swept.append(registry.gc(dry_run=False, grace_ms=-1))

    record = registry._publisher._put

    def put_then_sweep(*given):
        sizes = record(*given)
        sweep(sizes)
        return sizes

    registry._publisher._put = put_then_sweep
    assert publish(weights=b"2").number == 2
    assert swept[0].blobs
    assert_only_whole_versions(registry)


@pytest.mark.parametrize("point", [point for point in PUBLISH if point not in ("publish.committed", "publish.done")])
def test_an_error_at_any_step_before_the_commit_leaves_nothing_to_see(registry, publish, point):
    with pytest.raises(RuntimeError, match="by the test"), failing(point, RuntimeError("by the test")):
        publish()
    with pytest.raises(NotFound):
        registry.resolve("sentiment")
    assert list(registry.store.staging.iterdir()) == []
    assert registry.verify(deep=True).clean
    assert publish().number == 1


@pytest.mark.parametrize("point", [Point.PUBLISH_FILE_WRITTEN, Point.PUBLISH_BLOB_LINKED])
@pytest.mark.parametrize(("number", "word"), [(errno.ENOSPC, "full"), (errno.EROFS, "read-only")])
def test_a_disk_that_takes_no_more_is_an_error_that_says_so(registry, publish, point, number, word):
    with pytest.raises(Unavailable, match=word) as caught, failing(point, OSError(number, "from the disk")):
        publish()
    assert caught.value.code == "store_unavailable"
    with pytest.raises(NotFound):
        registry.resolve("sentiment")
    assert publish().number == 1
