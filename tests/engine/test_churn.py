"""Random churn against a single-adapter oracle: whatever comes, goes, is evicted or cancelled, no answer changes."""

import random

import pytest

TEXTS = ["a", "the quick brown fox", "hello " * 9, "0123456789" * 4, "zz top", "x" * 70]


class Churn:
    """Submits, cancels, steps, evicts and poisons at random; every whole answer is compared with its solo run."""

    def __init__(self, lab, seed, **options):
        self.lab, self.rng = lab, random.Random(seed)
        self.writers = lab.zoo()
        self.readers = [lab.classifier(20), lab.classifier(21, "prefix", length=3), lab.classifier(22, "none")]
        largest = max(adapter.nbytes for adapter in lab.source.adapters.values())
        self.engine = lab.engine(adapter_bytes=4 * largest, max_rows=5, step_tokens=48, **options)
        self.alone = {}
        self.open = []
        self.compared = 0

    def oracle(self, request):
        if request not in self.alone:
            self.alone[request] = self.lab.run(self.lab.engine(), [request])[0]
        return self.alone[request]

    def submit(self):
        text = self.rng.choice(TEXTS)
        if self.rng.random() < 0.3:
            request = self.lab.pool(text, self.rng.choice(self.readers))
        else:
            request = self.lab.ask(text, self.rng.choice(self.writers), max_tokens=self.rng.choice([1, 4, 9]))
        self.open.append((request, self.engine.submit(request)))

    def cancel(self):
        if self.open:
            _, handle = self.open.pop(self.rng.randrange(len(self.open)))
            handle.cancel()

    def evict(self):
        idle = [resident for resident in self.engine.bank.residents.values() if not resident.worn]
        if idle:
            self.engine.bank.evict(self.rng.choice(idle))
        self.lab.poison(self.engine)

    def collect(self):
        done = [entry for entry in self.open if entry[1].done]
        self.open = [entry for entry in self.open if not entry[1].done]
        for request, handle in done:
            answer, expected = handle.result(), self.oracle(request)
            self.lab.same(answer, expected)
            if expected.logits is not None:
                assert (answer.logits - expected.logits).abs().max() <= 2e-4
            self.compared += 1

    def run(self, steps):
        while self.engine.stats().steps < steps:
            action = self.rng.choices([self.submit, self.cancel, self.evict, self.collect], [6, 1, 2, 3])[0]
            action()
            for _ in range(self.rng.randint(1, 4)):
                self.engine.step()
        self.lab.drain(self.engine)
        self.collect()


@pytest.mark.parametrize("seed", [0, 1])
def test_over_a_thousand_steps_of_churn_no_answer_changes(any_lab, seed):
    churn = Churn(any_lab, seed)
    churn.run(1000)
    assert churn.compared > 200
    assert churn.engine.stats().evictions > 20


@pytest.mark.soak
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("seed", range(10))
def test_over_a_long_time_of_churn_no_answer_changes(any_lab, seed):
    churn = Churn(any_lab, 100 + seed)
    churn.run(25_000)
    assert churn.compared > 5_000
