"""Whether a training keeps its rows' frozen states: a matter of its task and data, never of what was kept before."""

from itertools import chain

from umbel.backbone.backbone import Backbone
from umbel.core.settings import Settings
from umbel.training.trainee import Trainee
from umbel.training.trunk.rowstore import RowStore
from umbel.training.trunk.trunk import Cut, Trunk, bytes_of, cut_of

_EPOCHS = 2
"""The first one takes longer where states are kept, up to twice as long on few rows: fewer do not pay for it."""


def choose_cut(trainee: Trainee, backbone: Backbone, settings: Settings, *, again: bool = False) -> Cut | None:
    """None where nothing lies below the adapter, rows do not come twice, or the states are more than may be kept.

    ``again`` says that others train on the same rows, so that each of them does come twice.
    """
    if trainee.task.trunk_cache == "off":
        return None
    cut = cut_of(trainee.adapter, backbone.shape.layers)
    if cut is None or not (again or trainee.schedule.steps >= _EPOCHS * trainee.batches.per_epoch):
        return None
    return cut if kept_bytes(trainee, cut, backbone) <= settings.trunk_cache_bytes else None


def kept_bytes(trainee: Trainee, cut: Cut, backbone: Backbone) -> int:
    prepared = trainee.prepared
    rows = chain(prepared.train.examples, prepared.validation.examples)
    return bytes_of(cut, rows, backbone.shape.hidden, backbone.dtype)


def open_trunk(backbone: Backbone, settings: Settings) -> Trunk:
    return Trunk(backbone, RowStore(settings.cache / "trunk", settings.trunk_cache_bytes))
