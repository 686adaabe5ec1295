"""A task with its data read, split and encoded: all that is known before the first step."""

import json
from dataclasses import dataclass, fields, replace

from umbel.backbone.backbone import Backbone
from umbel.core.contract import Contract, Decoding, OutputHead
from umbel.core.errors import DataError
from umbel.core.settings import Settings
from umbel.training.data.encode import EncodedRows, encode_rows
from umbel.training.data.rows import ALL_TOO_LONG, ChatRow, LabelledRow, Row, labels_of
from umbel.training.data.source import Splits, load_splits
from umbel.training.data.spooled import encode_all
from umbel.training.task import Task

_USUAL = {
    OutputHead.GENERATE: "exact_match",
    OutputHead.CLASSIFY: "accuracy",
    OutputHead.REGRESS: "rmse",
    OutputHead.TAG: "accuracy",
    OutputHead.EMBED: "mrr",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    task: Task
    contract: Contract
    splits: Splits
    train: EncodedRows
    validation: EncodedRows
    metric: str

    @property
    def test(self) -> list[Row]:
        """Rows to judge the finished adapter on."""
        return list(self.splits.test[: self.task.test_limit])


class Preparing:
    """``prepare`` for the tasks of one training: those on the same data, which differ in how they learn, share them."""

    def __init__(self, backbone: Backbone, settings: Settings) -> None:
        self.backbone, self.settings = backbone, settings
        self._made: dict[str, Prepared] = {}

    def __call__(self, task: Task) -> Prepared:
        key = json.dumps({name: value for name, value in task.as_json().items() if name in OF_DATA})
        if key not in self._made:
            self._made[key] = prepare(task, self.backbone, self.settings)
        return replace(self._made[key], task=task)


OF_DATA = frozenset(field.name for field in fields(Task)) - {
    *("name", "method", "options", "parent", "epochs", "steps", "batch_size", "micro_batch", "lr", "warmup", "decay"),
    *("weight_decay", "clip", "seed", "trunk_cache", "eval_every", "patience", "licence"),
    *("head_depth", "head_width", "head_activation", "head_dropout", "pooling"),
}
"""What of a task its rows, contract and metric hang on: all but how it learns."""


def prepare(task: Task, backbone: Backbone, settings: Settings) -> Prepared:
    """Raises DataError, ConfigError or NotFound for what is wrong with the task's data."""
    splits = load_splits(task, settings)
    contract = contract_of(task, splits, backbone)
    with splits.naming("train"):
        train = encode_all(splits.train, contract, backbone, settings)
    if not train.examples:
        raise DataError(
            f"all {len(splits.train)} training rows are longer than max_length {contract.max_length}.",
            code="too_long",
            hint=ALL_TOO_LONG,
        )
    if contract.output_head is OutputHead.GENERATE:
        contract = contract.model_copy(update={"decoding": _decoding(task, train)})
    with splits.naming("validation"):
        validation = encode_rows(list(splits.validation[: task.validation_limit]), contract, backbone)
    with splits.naming("test"):  # a wrong label there is told now, not at the end
        encode_rows(list(splits.test[: task.test_limit]), contract, backbone)
    metric = task.metric or splits.metric or _USUAL.get(task.output_head, "loss")
    return Prepared(task=task, contract=contract, splits=splits, train=train, validation=validation, metric=metric)


def contract_of(task: Task, splits: Splits, backbone: Backbone) -> Contract:
    multi = any(isinstance(row, LabelledRow) and row.multi for row in splits.train[:1])
    named = task.output_head in (OutputHead.CLASSIFY, OutputHead.TAG)
    return Contract(
        output_head=task.output_head,
        input_form="messages" if isinstance(splits.train[0], ChatRow) else "prompt",
        template=task.template,
        add_special_tokens=task.add_special_tokens,
        max_length=min(task.max_length, backbone.config.max_positions),
        truncation_side=task.truncation_side,
        labels=(task.labels or splits.labels or labels_of(splits.train)) if named else (),
        multi_label=multi,
        abstain_below=task.abstain_below,
        description=task.description,
        quantised=backbone.quantised,
    )


def _decoding(task: Task, train: EncodedRows) -> Decoding:
    if task.max_tokens is not None:
        return Decoding(max_tokens=task.max_tokens)
    longest = max(example.count for example in train.examples)
    return Decoding(max_tokens=longest + max(4, longest // 4))
