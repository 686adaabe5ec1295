"""``docs/founding-document.md`` promises nothing that no test shows."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "founding-document.md"


def test_the_page_names_only_tests_that_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 60
    for path, test in named:
        text = (PAGE.parents[1] / path).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in text, f"{path}::{test}"


def test_every_row_says_how_it_is_called_and_names_its_test_or_that_it_is_not_here():
    rows = [
        line.strip("|").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")
    ]
    for row in rows:
        if row[0].strip() not in ("promise", "group", "---"):
            assert "tests/" in row[-1] or "not here" in row[-2], row
