"""The tables. Nothing outside ``umbel.registry`` sees a row: the parts turn them into ``records``."""

from umbel.registry.models.access import ApiKeyRow, AuditRow, IdempotencyRow
from umbel.registry.models.adapters import (
    AdapterRow,
    AliasEventRow,
    AliasRow,
    BlobRow,
    NameRow,
    TagRow,
    VersionFileRow,
    VersionMetricRow,
    VersionRow,
)
from umbel.registry.models.base import Base
from umbel.registry.models.evidence import (
    ArmRow,
    EvalItemRow,
    EvaluationRow,
    ExperimentRow,
    ExposedRequestRow,
    ExposureRow,
    OutcomeRow,
)
from umbel.registry.models.inputs import BackboneRow, DatasetRow
from umbel.registry.models.runs import MetricPointRow, RunEventRow, RunRow

__all__ = [
    "AdapterRow",
    "AliasEventRow",
    "AliasRow",
    "ApiKeyRow",
    "ArmRow",
    "AuditRow",
    "BackboneRow",
    "Base",
    "BlobRow",
    "DatasetRow",
    "EvalItemRow",
    "EvaluationRow",
    "ExperimentRow",
    "ExposedRequestRow",
    "ExposureRow",
    "IdempotencyRow",
    "MetricPointRow",
    "NameRow",
    "OutcomeRow",
    "RunEventRow",
    "RunRow",
    "TagRow",
    "VersionFileRow",
    "VersionMetricRow",
    "VersionRow",
]
