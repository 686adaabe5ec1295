"""The first shape of the registry."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NAME = sa.String(length=63).with_variant(sa.String(length=63, collation="C"), "postgresql")

ID, WORD, DIGEST = sa.String(length=40), sa.String(length=32), sa.String(length=71)
TEXT, BIG = sa.Text(), sa.BigInteger()
APPEND_ONLY = ("alias_events", "audit_log")
TABLES = """
    api_keys audit_log idempotency_keys
    names datasets backbones
    runs run_events metric_points
    adapters adapter_versions
    blobs version_files version_metrics
    aliases alias_events tags
    evaluations eval_items
    experiments arms
    exposures exposed_requests outcomes
"""

FIXED = """
    id adapter_id number digest weights_sha256 method output_head backbone config contract run_id parent_id
    dataset seed n_params bytes code_version created_by created_at
"""
"""Columns of a version that nobody may edit."""


def upgrade() -> None:
    _create_access()
    _create_inputs()
    _create_runs()
    _create_adapters()
    _create_contents()
    _create_pointers()
    _create_evaluations()
    _create_experiments()
    _create_traffic()
    _create_triggers()


def downgrade() -> None:
    for table in reversed(TABLES.split()):
        op.drop_table(table)
    if not _sqlite():
        op.execute("DROP FUNCTION umbel_refuse()")


def _create_access() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False, comment="finds the row; no secret"),
        sa.Column("sha256", DIGEST, nullable=False, comment="of the whole key"),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_by", TEXT, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("revoked_at", BIG, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("prefix", name=op.f("uq_api_keys_prefix")),
    )
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.Column("action", WORD, nullable=False),
        sa.Column("target", sa.String(length=255), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_index(op.f("ix_audit_log_target_id"), "audit_log", ["target", "id"])
    op.create_table(
        "idempotency_keys",
        sa.Column("scope", sa.String(length=64), nullable=False, comment="whose key it is, such as an api key's id"),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("request", DIGEST, nullable=False, comment="digest of the request; another one is refused"),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("scope", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(op.f("ix_idempotency_keys_at"), "idempotency_keys", ["at"])


def _create_inputs() -> None:
    op.create_table(
        "names",
        sa.Column("name", NAME, nullable=False),
        sa.Column("kind", WORD, nullable=False),
        sa.CheckConstraint("kind IN ('adapter', 'backbone', 'experiment')", name=op.f("ck_names_kind")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_names")),
    )
    op.create_table(
        "datasets",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("form", WORD, nullable=False),
        sa.Column("rows", BIG, nullable=False),
        sa.Column("bytes", BIG, nullable=False),
        sa.Column("splits", sa.JSON(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False, comment="what validation found"),
        sa.Column("source", TEXT, nullable=True),
        sa.Column("licence", TEXT, nullable=True),
        sa.Column("created_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
        sa.UniqueConstraint("digest", name=op.f("uq_datasets_digest")),
    )
    op.create_index(op.f("ix_datasets_name"), "datasets", ["name"])
    op.create_table(
        "backbones",
        sa.Column("name", NAME, nullable=False),
        sa.Column("fingerprint", DIGEST, nullable=False, comment="sha256 over config and tensors"),
        sa.Column("source", TEXT, nullable=False),
        sa.Column("licence", TEXT, nullable=True),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("tokenizer_sha", DIGEST, nullable=True),
        sa.Column("chat_template_sha", DIGEST, nullable=True),
        sa.Column("parent", DIGEST, nullable=True, comment="fingerprint that this one was converted from"),
        sa.Column("created_at", BIG, nullable=False),
        sa.ForeignKeyConstraint(["name"], ["names.name"], name=op.f("fk_backbones_name_names")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_backbones")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_backbones_fingerprint")),
    )


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", NAME, nullable=False, comment="adapter that it trains"),
        sa.Column("status", WORD, nullable=False),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("seed", BIG, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False, comment="counts the workers that have taken it"),
        sa.Column("lease_owner", TEXT, nullable=True),
        sa.Column("heartbeat_at", BIG, nullable=True, comment="last sign of life of the owner"),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("error", TEXT, nullable=True),
        sa.Column("summary", sa.JSON(), nullable=True),
        sa.Column("last_seq", sa.Integer(), nullable=False, comment="seq of the newest event"),
        sa.Column("created_by", TEXT, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("started_at", BIG, nullable=True),
        sa.Column("finished_at", BIG, nullable=True),
        sa.CheckConstraint(
            "status IN ('validating_files', 'queued', 'running', 'succeeded', 'failed', 'cancelled')",
            name=op.f("ck_runs_status"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index(op.f("ix_runs_name"), "runs", ["name"])
    op.create_index(op.f("ix_runs_status_id"), "runs", ["status", "id"])
    op.create_table(
        "run_events",
        sa.Column("run_id", ID, nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False, comment="counts up from 1 without a gap"),
        sa.Column("level", WORD, nullable=False),
        sa.Column("message", TEXT, nullable=False),
        sa.Column("data", sa.JSON(), nullable=True),
        sa.Column("at", BIG, nullable=False),
        sa.CheckConstraint("level IN ('debug', 'info', 'warning', 'error')", name=op.f("ck_run_events_level")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_events_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", "seq", name=op.f("pk_run_events")),
    )
    op.create_table(
        "metric_points",
        sa.Column("run_id", ID, nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("step", BIG, nullable=False),
        sa.Column("value", sa.Double(), nullable=True, comment="null for NaN and infinities, which SQL cannot order"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_metric_points_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", "key", "step", name=op.f("pk_metric_points")),
    )


def _create_adapters() -> None:
    op.create_table(
        "adapters",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("description", TEXT, nullable=False),
        sa.Column("backbone", DIGEST, nullable=False, comment="that of its newest version; all share a root"),
        sa.Column("last_number", sa.Integer(), nullable=False, comment="highest version number ever given"),
        sa.Column("created_by", TEXT, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("removed_at", BIG, nullable=True, comment="set while every version is deleted"),
        sa.ForeignKeyConstraint(["name"], ["names.name"], name=op.f("fk_adapters_name_names")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapters")),
        sa.UniqueConstraint("name", name=op.f("uq_adapters_name")),
    )
    op.create_index(op.f("ix_adapters_backbone"), "adapters", ["backbone"])
    op.create_index(op.f("ix_adapters_created_at_id"), "adapters", ["created_at", "id"])
    op.create_table(
        "adapter_versions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False, comment="counts up from 1 inside one adapter"),
        sa.Column("digest", DIGEST, nullable=False, comment="sha256 of the canonical manifest"),
        sa.Column("weights_sha256", DIGEST, nullable=False),
        sa.Column("method", WORD, nullable=False),
        sa.Column("output_head", WORD, nullable=False),
        sa.Column("backbone", DIGEST, nullable=False, comment="fingerprint as the manifest has it"),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("contract", sa.JSON(), nullable=False),
        sa.Column("state", WORD, nullable=False),
        sa.Column("reason", TEXT, nullable=True, comment="why it is in this state"),
        sa.Column("state_at", BIG, nullable=False, comment="when it came into this state"),
        sa.Column("run_id", ID, nullable=True),
        sa.Column("parent_id", sa.Integer(), nullable=True),
        sa.Column("dataset", DIGEST, nullable=True, comment="digest; the data need not be registered"),
        sa.Column("seed", BIG, nullable=True),
        sa.Column("n_params", BIG, nullable=True),
        sa.Column("bytes", BIG, nullable=False, comment="of all files of the manifest"),
        sa.Column("card", TEXT, nullable=True, comment="README.md, beside the digest and not in it"),
        sa.Column("code_version", TEXT, nullable=True),
        sa.Column("created_by", TEXT, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.CheckConstraint("length(digest) = 71 AND digest LIKE 'sha256:%'", name=op.f("ck_adapter_versions_digest")),
        sa.CheckConstraint(
            "output_head IN ('generate', 'classify', 'regress', 'tag', 'embed')",
            name=op.f("ck_adapter_versions_output_head"),
        ),
        sa.CheckConstraint(
            "state IN ('staged', 'validating', 'ready', 'deprecated', 'yanked', 'rejected', 'deleted')",
            name=op.f("ck_adapter_versions_state"),
        ),
        sa.CheckConstraint("number >= 1", name=op.f("ck_adapter_versions_number")),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_adapter_versions_adapter_id_adapters")),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["adapter_versions.id"], name=op.f("fk_adapter_versions_parent_id_adapter_versions")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_adapter_versions_run_id_runs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapter_versions")),
        sa.UniqueConstraint("adapter_id", "digest", name=op.f("uq_adapter_versions_adapter_id_digest")),
        sa.UniqueConstraint("adapter_id", "number", name=op.f("uq_adapter_versions_adapter_id_number")),
    )
    op.create_index(op.f("ix_adapter_versions_dataset"), "adapter_versions", ["dataset"])
    op.create_index(op.f("ix_adapter_versions_digest"), "adapter_versions", ["digest"])
    op.create_index(op.f("ix_adapter_versions_parent_id"), "adapter_versions", ["parent_id"])
    op.create_index(op.f("ix_adapter_versions_run_id"), "adapter_versions", ["run_id"])


def _create_contents() -> None:
    op.create_table(
        "blobs",
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("bytes", BIG, nullable=False),
        sa.Column("state", WORD, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("verified_at", BIG, nullable=True, comment="when its bytes were last hashed and right"),
        sa.CheckConstraint("length(digest) = 71 AND digest LIKE 'sha256:%'", name=op.f("ck_blobs_digest")),
        sa.CheckConstraint("state IN ('present', 'quarantined')", name=op.f("ck_blobs_state")),
        sa.CheckConstraint("bytes > 0", name=op.f("ck_blobs_bytes")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_blobs")),
    )
    op.create_table(
        "version_files",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("path", sa.String(length=255), nullable=False),
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("bytes", BIG, nullable=False),
        sa.ForeignKeyConstraint(
            ["digest"], ["blobs.digest"], name=op.f("fk_version_files_digest_blobs"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["adapter_versions.id"], name=op.f("fk_version_files_version_id_adapter_versions")
        ),
        sa.PrimaryKeyConstraint("version_id", "path", name=op.f("pk_version_files")),
    )
    op.create_index(op.f("ix_version_files_digest"), "version_files", ["digest"])
    op.create_table(
        "version_metrics",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["adapter_versions.id"], name=op.f("fk_version_metrics_version_id_adapter_versions")
        ),
        sa.PrimaryKeyConstraint("version_id", "key", name=op.f("pk_version_metrics")),
    )
    op.create_index(op.f("ix_version_metrics_key_value"), "version_metrics", ["key", "value"])


def _create_pointers() -> None:
    op.create_table(
        "aliases",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("alias", NAME, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("updated_by", TEXT, nullable=False),
        sa.Column("updated_at", BIG, nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id", "number"],
            ["adapter_versions.adapter_id", "adapter_versions.number"],
            name=op.f("fk_aliases_adapter_id_number_adapter_versions"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_aliases_adapter_id_adapters")),
        sa.PrimaryKeyConstraint("adapter_id", "alias", name=op.f("pk_aliases")),
    )
    op.create_index(op.f("ix_aliases_adapter_id_number"), "aliases", ["adapter_id", "number"])
    op.create_table(
        "alias_events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("alias", NAME, nullable=False),
        sa.Column("kind", WORD, nullable=False),
        sa.Column(
            "origin", sa.Integer(), nullable=True, comment="version number before; null where the alias was made"
        ),
        sa.Column("target", sa.Integer(), nullable=True, comment="version number after; null where it was removed"),
        sa.Column("actor", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=True),
        sa.Column("evidence", TEXT, nullable=True, comment="id of an evaluation or experiment"),
        sa.Column("at", BIG, nullable=False),
        sa.CheckConstraint("kind IN ('set', 'rollback', 'remove')", name=op.f("ck_alias_events_kind")),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_alias_events_adapter_id_adapters")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_events")),
    )
    op.create_index(op.f("ix_alias_events_adapter_id_alias_id"), "alias_events", ["adapter_id", "alias", "id"])
    op.create_table(
        "tags",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("value", sa.String(length=512), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_tags_adapter_id_adapters")),
        sa.PrimaryKeyConstraint("adapter_id", "key", name=op.f("pk_tags")),
    )
    op.create_index(op.f("ix_tags_key_value"), "tags", ["key", "value"])


def _create_evaluations() -> None:
    op.create_table(
        "evaluations",
        sa.Column("id", ID, nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("suite", DIGEST, nullable=False, comment="digest of the items that were asked"),
        sa.Column("params", sa.JSON(), nullable=False, comment="what else decided the answers, such as decoding"),
        sa.Column("params_digest", DIGEST, nullable=False),
        sa.Column("summary", sa.JSON(), nullable=False),
        sa.Column("n_items", sa.Integer(), nullable=False),
        sa.Column("created_by", TEXT, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["adapter_versions.id"], name=op.f("fk_evaluations_version_id_adapter_versions")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
    )
    op.create_index(op.f("ix_evaluations_suite_params_digest"), "evaluations", ["suite", "params_digest"])
    op.create_index(op.f("ix_evaluations_version_id"), "evaluations", ["version_id"])
    op.create_table(
        "eval_items",
        sa.Column("evaluation_id", ID, nullable=False),
        sa.Column("metric", sa.String(length=64), nullable=False),
        sa.Column("item", sa.String(length=255), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("output", TEXT, nullable=True),
        sa.Column("cluster", TEXT, nullable=True),
        sa.ForeignKeyConstraint(
            ["evaluation_id"], ["evaluations.id"], name=op.f("fk_eval_items_evaluation_id_evaluations")
        ),
        sa.PrimaryKeyConstraint("evaluation_id", "metric", "item", name=op.f("pk_eval_items")),
    )


def _create_experiments() -> None:
    op.create_table(
        "experiments",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("status", WORD, nullable=False),
        sa.Column("metric", sa.String(length=64), nullable=False, comment="what decides it"),
        sa.Column("salt", TEXT, nullable=False, comment="makes its split independent of every other experiment's"),
        sa.Column("hash_version", sa.Integer(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("decision", sa.JSON(), nullable=True),
        sa.Column("created_by", TEXT, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("stopped_at", BIG, nullable=True),
        sa.CheckConstraint("status IN ('running', 'stopped', 'decided')", name=op.f("ck_experiments_status")),
        sa.ForeignKeyConstraint(["name"], ["names.name"], name=op.f("fk_experiments_name_names")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_experiments")),
        sa.UniqueConstraint("name", name=op.f("uq_experiments_name")),
    )
    op.create_index(op.f("ix_experiments_status_id"), "experiments", ["status", "id"])
    op.create_table(
        "arms",
        sa.Column("experiment_id", ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.CheckConstraint("weight > 0", name=op.f("ck_arms_weight")),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name=op.f("fk_arms_experiment_id_experiments")),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["adapter_versions.id"],
            name=op.f("fk_arms_version_id_adapter_versions"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("experiment_id", "name", name=op.f("pk_arms")),
    )
    op.create_index(op.f("ix_arms_version_id"), "arms", ["version_id"])


def _create_traffic() -> None:
    op.create_table(
        "exposures",
        sa.Column("experiment_id", ID, nullable=False),
        sa.Column("unit_hash", sa.String(length=64), nullable=False, comment="of salt and unit: no user id is kept"),
        sa.Column("arm", NAME, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id", "arm"],
            ["arms.experiment_id", "arms.name"],
            name=op.f("fk_exposures_experiment_id_arm_arms"),
        ),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name=op.f("fk_exposures_experiment_id_experiments")
        ),
        sa.PrimaryKeyConstraint("experiment_id", "unit_hash", name=op.f("pk_exposures")),
    )
    op.create_index(op.f("ix_exposures_experiment_id_arm"), "exposures", ["experiment_id", "arm"])
    op.create_table(
        "exposed_requests",
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("experiment_id", ID, nullable=False),
        sa.Column("unit_hash", sa.String(length=64), nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id", "unit_hash"],
            ["exposures.experiment_id", "exposures.unit_hash"],
            name=op.f("fk_exposed_requests_experiment_id_unit_hash_exposures"),
        ),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_exposed_requests")),
    )
    op.create_index(
        op.f("ix_exposed_requests_experiment_id_unit_hash"), "exposed_requests", ["experiment_id", "unit_hash"]
    )
    op.create_table(
        "outcomes",
        sa.Column("idempotency_key", sa.String(length=255), nullable=False, comment="sent twice, counted once"),
        sa.Column("experiment_id", ID, nullable=False),
        sa.Column("unit_hash", sa.String(length=64), nullable=False),
        sa.Column("metric", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id", "unit_hash"],
            ["exposures.experiment_id", "exposures.unit_hash"],
            name=op.f("fk_outcomes_experiment_id_unit_hash_exposures"),
        ),
        sa.PrimaryKeyConstraint("idempotency_key", name=op.f("pk_outcomes")),
    )
    op.create_index(
        op.f("ix_outcomes_experiment_id_metric_unit_hash"), "outcomes", ["experiment_id", "metric", "unit_hash"]
    )


def _create_triggers() -> None:
    if not _sqlite():
        op.execute(
            "CREATE FUNCTION umbel_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION '% is never edited', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';"
            " END $$"
        )
    for table in APPEND_ONLY:
        _refuse(f"{table}_no_update", f"UPDATE ON {table}", table)
        _refuse(f"{table}_no_delete", f"DELETE ON {table}", table)
    _refuse(
        "adapter_versions_no_update", f"UPDATE OF {', '.join(FIXED.split())} ON adapter_versions", "adapter_versions"
    )
    _refuse("adapter_versions_no_delete", "DELETE ON adapter_versions", "adapter_versions")


def _refuse(name: str, when: str, table: str) -> None:
    if _sqlite():
        op.execute(f"CREATE TRIGGER {name} BEFORE {when} BEGIN SELECT RAISE(ABORT, '{table} is never edited'); END")
    else:
        op.execute(f"CREATE TRIGGER {name} BEFORE {when} FOR EACH ROW EXECUTE FUNCTION umbel_refuse()")


def _sqlite() -> bool:
    return op.get_bind().dialect.name == "sqlite"
