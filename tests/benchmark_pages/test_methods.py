"""The methods benchmark: cells survive a stop, intervals are Student's, differences are paired by seed."""

from dataclasses import asdict, replace

import pytest
from benchmarks.methods import Book, Mean, page
from benchmarks.methods_work import Budget, Cell

CELL = Cell(
    data="pronounce",
    system="umbel",
    method="lora",
    seed=0,
    metric="phoneme_error_rate",
    value=0.5,
    rows=60,
    parameters=1000,
    bytes=4000,
    cpu_seconds=2.0,
    seconds=3.0,
)


@pytest.fixture
def book(tmp_path):
    made = Book(tmp_path / "methods.json", Budget(), {"cores": 2}, [])
    for seed, (ours, theirs) in enumerate([(0.5, 0.6), (0.4, 0.6), (0.6, 0.6)]):
        made.add(replace(CELL, seed=seed, value=ours))
        made.add(replace(CELL, seed=seed, value=theirs, system="HF + PEFT"))
    return made


def test_a_stopped_run_finds_every_finished_cell_again(book):
    again = Book.open(book.path)
    assert {key: asdict(cell) for key, cell in again.cells.items()} == {k: asdict(c) for k, c in book.cells.items()}
    assert not list(book.path.parent.glob("*.partial"))


def test_a_file_of_another_budget_is_refused(book):
    book.path.write_text(book.path.read_text().replace('"steps": ', '"steps": 9'))
    with pytest.raises(SystemExit, match="another budget"):
        Book.open(book.path)


def test_the_interval_is_student_s():
    assert Mean.of([1.0, 2.0, 3.0]).half == pytest.approx(4.302652730 / 3**0.5)  # t of two degrees of freedom
    assert str(Mean.of([0.25])) == "0.250 (one seed)"


def test_a_lower_error_rate_is_a_positive_difference_paired_by_seed(book):
    (row,) = [line for line in page(book).splitlines() if line.startswith("| `lora`")]
    assert "| 0.500 ± 0.248 | 0.600 ± 0.000 | 0.100 ± 0.248 | 3 / 3 |" in row


def test_what_is_not_measured_is_said(book):
    text = page(book)
    assert text.count("Not measured yet.") == 2
    del book.cells["pronounce", "HF + PEFT", "lora", 2]
    assert "| 3 / 2 |" in page(book)
