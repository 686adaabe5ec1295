"""Which of two versions is better, and how sure: paired comparison of scores on the same rows (``compare``), traffic
split by hash (``Split``) and the reading of a running experiment at any moment (``monitor``). No torch, no SQL, no
HTTP: plain numbers in, plain values out. ``live.py`` (not imported here) applies them to what the registry keeps. Start
reading at ``comparison.py``."""

from umbel.experiments.assign import HASH_VERSION, Split, bucket
from umbel.experiments.bootstrap import compare_statistic
from umbel.experiments.comparison import Comparison, Interval, holm
from umbel.experiments.monitor import ArmCounts, Metric, Report, monitor
from umbel.experiments.paired import compare, compare_binary, compare_scores
from umbel.experiments.sequential import Sums

__all__ = [
    "HASH_VERSION",
    "ArmCounts",
    "Comparison",
    "Interval",
    "Metric",
    "Report",
    "Split",
    "Sums",
    "bucket",
    "compare",
    "compare_binary",
    "compare_scores",
    "compare_statistic",
    "holm",
    "monitor",
]
