"""A spreadsheet out of the dataset `tweets-sentiment`: its first 200 tweets under the columns id, tweet and mood.

umbel pull dataset tweets-sentiment
python examples/spreadsheet.py tweets.csv
"""

import csv
import json
import sys
from itertools import islice
from pathlib import Path

from umbel.core.settings import Settings

ROWS = 200


def main() -> None:
    source, target = Settings.load().datasets / "tweets-sentiment" / "train.jsonl", Path(sys.argv[1])
    with source.open(encoding="utf-8") as lines, target.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("id", "tweet", "mood"))
        for number, row in enumerate(map(json.loads, islice(lines, ROWS)), 1):
            table.writerow((number, row["text"], row["label"]))
    print(f"{target}: {ROWS} tweets with their mood")


if __name__ == "__main__":
    main()
