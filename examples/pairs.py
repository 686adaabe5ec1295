"""Pairs for an embedder out of the dataset `pronounce`: a word as it is spelled, and as it is said.

    umbel pull dataset pronounce
    python examples/pairs.py sounds
    umbel train examples/tasks/sounds.toml --data sounds

Words that are said alike are left out of validation and test, since neither of two right answers would be wrong.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from umbel.core.settings import Settings

ROWS = {"train": 4800, "validation": 128, "test": 500}


def pairs(path: Path, most: int, *, unlike: bool) -> list[dict[str, str]]:
    """``unlike`` keeps only words that no other word of the file is said like."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    said = Counter(row["completion"] for row in rows)
    kept = [row for row in rows if not unlike or said[row["completion"]] == 1]
    return [{"text": row["prompt"].removesuffix(" ->"), "positive": row["completion"].strip()} for row in kept[:most]]


def main() -> None:
    source, target = Settings.load().datasets / "pronounce", Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for split, most in ROWS.items():
        rows = pairs(source / f"{split}.jsonl", most, unlike=split != "train")
        (target / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{target / split}.jsonl: {len(rows):,} pairs, first {rows[0]}")


if __name__ == "__main__":
    main()
