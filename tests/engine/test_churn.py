"""Random churn through a real registry: whatever is published, promoted, evicted or cancelled, no answer changes.

A hypothesis state machine publishes versions, moves aliases, and asks by name, alias, number and digest. What a word
meant when it was asked is the test's own book-keeping; what that version answers is computed by an engine that
never held another adapter, from tensors that never went through the registry.
"""

import itertools
import os
import time
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from umbel.adapters.peft_io import export_files
from umbel.core.contract import Contract, OutputHead
from umbel.core.errors import Conflict, NotFound
from umbel.core.settings import Settings
from umbel.engine import Engine, GenerateRequest
from umbel.registry import Registry

GENERATE = Contract(output_head=OutputHead.GENERATE)
CLASSIFY = Contract(output_head=OutputHead.CLASSIFY, labels=("bad", "fair", "good"))
KINDS = [
    ("lora", GENERATE, {"rank": 4}),
    ("lora", GENERATE, {"rank": 8, "rslora": True, "targets": ("q_proj", "v_proj", "lm_head")}),
    ("lora", GENERATE, {"rank": 3, "dora": True, "targets": ("q_proj", "v_proj")}),
    ("llama_adapter", GENERATE, {}),
    ("prefix", GENERATE, {"length": 5}),
    ("prompt", GENERATE, {"length": 4}),
    ("ia3", GENERATE, {}),
    ("bottleneck", GENERATE, {}),
    ("lora", CLASSIFY, {"rank": 4}),
    ("prefix", CLASSIFY, {"length": 3}),
    ("none", CLASSIFY, {}),
]
TEXTS = ["a", "the quick brown fox", "hello " * 9, "hello " * 9 + "you", "0123456789" * 4, "hello " * 11]
LONGEST = 40
"""Tokens of the longest answers: more than a row is promised at a time."""
ALIASES = ["champion", "canary"]

names = st.integers(0, 1)
kinds = st.integers(0, len(KINDS) - 1)
picks = st.integers(0, 50)
texts = st.sampled_from(TEXTS)
counts = st.integers(0, 3)
room = st.sampled_from([140, 200, 10_000])
"""Tokens of keys and values: one long row and a bit, two, or any."""
tenants = st.sampled_from(["ann", "bob"])


@dataclass
class World:
    """What outlives one run of the machine: the registry, the truth about every version, and the tally."""

    lab: object = field(repr=False)
    registry: Registry = field(repr=False)
    seeds: int
    """How many adapters of each kind there are."""
    numbers: itertools.count = field(default_factory=itertools.count, repr=False)
    engines: dict = field(default_factory=dict, repr=False)
    """One for each version, which never holds another."""
    alone: dict = field(default_factory=dict, repr=False)
    rules: int = 0
    steps: int = 0
    """Of the engines."""
    published: int = 0
    flips: int = 0
    compared: int = 0
    outlived: int = 0
    """Answers whose alias moved to another version while they were made."""
    evictions: int = 0
    preemptions: int = 0
    hits: int = 0
    """Rows that began with kept keys and values."""

    def publish(self, name, kind, seed):
        method, contract, options = KINDS[kind]
        adapter = self.lab.source.adapters[self.lab.adapter(method, seed, contract=contract, **options)]
        version = self.registry.publish(
            export_files(adapter, backbone_name="tiny"),
            name=name,
            method=method,
            config=adapter.config,
            contract=contract,
            backbone=self.lab.backbone.fingerprint,
        )
        self.lab.source.adapters[version.digest] = adapter
        self.published += 1
        return version

    def engine(self, rows, adapters, chunk, tokens):
        largest = max(adapter.nbytes for adapter in self.lab.source.adapters.values())
        kv_bytes = tokens * self.lab.backbone.kv_bytes_per_token
        sizes = {"kv_bytes": kv_bytes, "max_length": 256, "adapter_bytes": adapters * largest}
        return Engine(self.lab.backbone, self.registry, max_rows=rows, step_tokens=chunk, **sizes)

    def oracle(self, request):
        """What the version answers alone; of the longest answer, as many tokens as were asked for."""
        generates = isinstance(request, GenerateRequest)
        key = replace(request, tenant="", **({"max_tokens": LONGEST} if generates else {}))
        if key not in self.alone:
            if request.adapter not in self.engines:
                self.engines[request.adapter] = self.lab.engine(prefix_bytes=0)
            self.alone[key] = self.lab.run(self.engines[request.adapter], [key])[0]
        answer = self.alone[key]
        return replace(answer, tokens=answer.tokens[: request.max_tokens]) if generates else answer


class Churn(RuleBasedStateMachine):
    """Rules draw nothing that depends on what the loader's thread has done so far."""

    def __init__(self, world):
        super().__init__()
        self.world = world
        self.prefix = f"run-{next(world.numbers)}"
        self.versions: dict[str, list[str]] = {}
        """Digests by name; the first one's number is 1."""
        self.aliases: dict[tuple[str, str], str] = {}
        self.open = []
        self.tenant = ""

    @initialize(rows=st.integers(2, 5), adapters=st.integers(2, 5), chunk=st.integers(16, 64), kind=kinds, room=room)
    def begin(self, rows, adapters, chunk, kind, room):
        for name in range(2):
            self.publish(name, kind, name)
            self.publish(name, (kind + 1) % len(KINDS), name)
        self.engine = self.world.engine(rows, adapters, chunk, room)

    @rule(name=names, kind=kinds, seed=picks)
    def publish(self, name, kind, seed):
        name = self.name(name)
        version = self.world.publish(name, kind, seed % self.world.seeds)
        known = self.versions.setdefault(name, [])
        if version.digest not in known:
            known.append(version.digest)
        assert version.number == known.index(version.digest) + 1
        self.aliases.setdefault((name, "champion"), version.digest)

    @rule(name=names, alias=st.sampled_from(ALIASES), pick=picks)
    def flip(self, name, alias, pick):
        name = self.name(name)
        known = self.versions[name]
        self.world.registry.aliases.set(f"{name}:{pick % len(known) + 1}", alias)
        self.world.flips += self.aliases.get((name, alias)) != known[pick % len(known)]
        self.aliases[name, alias] = known[pick % len(known)]

    @rule(name=names, alias=st.sampled_from(ALIASES), pick=picks, text=texts, then=counts)
    def flip_under_way(self, name, alias, pick, text, then):
        self.ask_by_alias(name, alias, text, LONGEST, 1)
        self.flip(name, alias, pick)
        self.step(then)

    @rule(name=names)
    def drop_canary(self, name):
        name = self.name(name)
        if self.aliases.pop((name, "canary"), None):
            self.world.registry.aliases.remove(name, "canary")
        with pytest.raises(NotFound):
            self.world.registry.resolve(f"{name}@canary")

    @rule(name=names, alias=st.sampled_from(ALIASES), text=texts, tokens=st.sampled_from([1, 4, LONGEST]), then=counts)
    def ask_by_alias(self, name, alias, text, tokens, then):
        name = self.name(name)
        digest = self.aliases.get((name, alias), self.aliases[name, "champion"])
        asked = f"{name}@{alias}" if (name, alias) in self.aliases else name
        self.ask(asked, digest, text, tokens, moves=(name, asked.partition("@")[2] or "champion"))
        self.step(then)

    @rule(name=names, pick=picks, text=texts, by_digest=st.booleans(), then=counts)
    def ask_by_version(self, name, pick, text, by_digest, then):
        name = self.name(name)
        number = pick % len(self.versions[name])
        digest = self.versions[name][number]
        self.ask(f"{name}@{digest}" if by_digest else f"{name}:{number + 1}", digest, text, 4)
        self.step(then)

    @rule(name=names, picks=st.lists(picks, min_size=3, max_size=8), text=texts, then=counts)
    def ask_all_at_once(self, name, picks, text, then):
        for pick in picks:
            self.ask_by_version(name, pick, TEXTS[(TEXTS.index(text) + pick) % len(TEXTS)], pick % 2 == 0, 0)
        self.step(then)

    @rule(text=texts, then=counts)
    def ask_the_backbone(self, text, then):
        request = self.world.lab.ask(text, max_tokens=4)
        self.open.append((request, self.engine.submit(request), None))
        self.step(then)

    @rule(tenant=tenants)
    def somebody_else_asks(self, tenant):
        self.tenant = tenant

    @rule(pick=picks)
    def cancel(self, pick):
        if self.open:
            _, handle, _ = self.open.pop(pick % len(self.open))
            handle.cancel()

    @rule(pick=picks)
    def evict(self, pick):
        idle = [resident for resident in self.engine.bank.residents.values() if not resident.worn]
        if idle:
            self.engine.bank.evict(idle[pick % len(idle)])

    @rule(name=names, pick=picks)
    def unload(self, name, pick):
        known = self.versions[self.name(name)]
        done = self.engine.unload(known[pick % len(known)])
        self.step(1)
        assert done.done()
        assert done.exception() is None or isinstance(done.exception(), Conflict)

    @rule(name=names, pick=picks, then=counts)
    def warm(self, name, pick, then):
        known = self.versions[self.name(name)]
        self.engine.warm(known[pick % len(known)])
        self.step(then)

    @rule(count=st.integers(5, 20))
    def step(self, count):
        for _ in range(count):
            self.engine.step()
            self.world.steps += 1
        self.world.lab.poison(self.engine)
        self.collect()

    @invariant()
    def count(self):
        self.world.rules += 1

    def name(self, number):
        return f"{self.prefix}-{number}"

    def ask(self, model, digest, text, tokens, *, moves=None):
        """``digest`` is what the test believes that ``model`` means now; ``moves`` the alias that it was asked by."""
        ref = self.world.registry.resolve(model)
        assert ref.digest == digest
        lab = self.world.lab
        adapter = lab.source.adapters[digest]
        writes = adapter.contract.output_head is OutputHead.GENERATE
        who = {"tenant": self.tenant}
        request = lab.ask(text, ref.digest, max_tokens=tokens, **who) if writes else lab.pool(text, ref.digest, **who)
        self.open.append((request, self.engine.submit(request), moves))

    def collect(self):
        done = [entry for entry in self.open if entry[1].done]
        self.open = [entry for entry in self.open if not entry[1].done]
        for request, handle, moves in done:
            answer, expected = handle.result(), self.world.oracle(request)
            self.world.lab.same(answer, expected)
            if expected.logits is not None:
                torch.testing.assert_close(answer.logits, expected.logits, rtol=0, atol=self.world.lab.tolerance)
            self.world.compared += 1
            self.world.outlived += moves is not None and self.aliases.get(moves) != request.adapter

    def teardown(self):
        self.world.lab.drain(self.engine)
        self.collect()
        stats = self.engine.stats()
        self.engine.close()
        self.world.evictions += stats.evictions
        self.world.preemptions += stats.preemptions
        self.world.hits += stats.prefix_hits
        assert not self.open
        assert (stats.running, stats.waiting, stats.adapters_worn, stats.kv_bytes_reserved) == (0, 0, 0, 0)
        assert (stats.rows_preempted, stats.kv_bytes_saved) == (0, 0)


def churn(world, examples, steps, **changes):
    options = {"deadline": None, "database": None, "phases": [Phase.generate], "print_blob": False}
    chosen = settings(
        max_examples=examples, stateful_step_count=steps, suppress_health_check=list(HealthCheck), **options, **changes
    )
    run_state_machine_as_test(partial(Churn, world), settings=chosen)


@pytest.fixture
def world(any_lab, tmp_path):
    places = Settings(
        home=tmp_path, database_url=f"sqlite:///{tmp_path / 'registry.db'}", store_url=str(tmp_path / "s")
    )
    with Registry.open(places) as registry:
        yield World(any_lab, registry, seeds=2)


@pytest.mark.timeout(1200)  # half a minute by itself; a busy machine must not cut it short
def test_no_answer_changes_over_a_thousand_steps_of_publishing_promoting_evicting_and_asking(world):
    churn(world, 12, 90, derandomize=True)
    assert world.rules > 1000
    assert world.steps > 1000
    assert world.published > 60
    assert world.flips > 50
    assert world.compared > 500
    assert world.outlived > 20
    assert world.evictions > 20
    assert world.preemptions > 3
    assert world.hits > 100


def test_two_versions_never_answer_alike(world):
    """Without this, an answer by the wrong version could pass for the right one."""
    digests = [world.publish(f"k{kind}", kind, seed).digest for kind in range(len(KINDS)) for seed in range(2)]
    lab = world.lab
    writers = [digest for digest in digests if lab.source.adapters[digest].contract is GENERATE]
    written = [
        tuple((token.token, token.logprob) for token in world.oracle(lab.ask("hello", one)).tokens) for one in writers
    ]
    read = [tuple(world.oracle(lab.pool("hello", one)).logits.tolist()) for one in digests if one not in writers]
    assert len(set(written)) == len(writers)
    assert len(set(read)) == len(digests) - len(writers)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_no_answer_changes_over_an_hour(world):
    """``UMBEL_SOAK_MINUTES`` (60) in both dtypes together, and in proportion 100,000 answers an hour."""
    minutes = float(os.environ.get("UMBEL_SOAK_MINUTES", "60")) / 2
    world.seeds, end = 10, time.monotonic() + 60 * minutes
    while time.monotonic() < end or world.compared < 100_000 / 60 * minutes:
        churn(world, 5, 100)
    print(world)
