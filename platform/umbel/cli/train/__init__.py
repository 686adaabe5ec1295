"""``umbel train``: from a dataset to a published version, one command; its parts are one file each."""

from umbel.cli.train.command import app

__all__ = ["app"]
