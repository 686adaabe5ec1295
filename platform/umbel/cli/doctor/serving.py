"""Conditions of serving: the address, keys, one token, and rows that do not feel their company."""

from typing import TYPE_CHECKING

from umbel.cli.console import human_number
from umbel.cli.doctor.condition import Condition, Finding, failed, fine, warning
from umbel.cli.doctor.patient import Patient, Skip
from umbel.core.forms import told
from umbel.core.listening import listen

if TYPE_CHECKING:
    from umbel.registry.records import ApiKey

_KV_BYTES = 64_000_000
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def port(patient: Patient) -> Finding:
    where = f"{patient.host}:{patient.port}"
    try:
        with listen(patient.host, patient.port):
            return fine(f"{where} is free")
    except OSError as error:
        return warning(f"{where}: {error.strerror}", "umbel serve --port 0 takes any free one; umbel ps shows a server")


def keys(patient: Patient) -> Finding:
    """Beyond loopback everybody reaches the server; it does not start there without a key."""
    from umbel.registry.records import Scope

    live = _live_keys(patient)
    if patient.host in LOOPBACK or patient.host.startswith("127."):
        return fine(f"{human_number(len(live), 'key')}; none is needed to ask on {patient.host}")
    if not live:
        return failed(f"{patient.host} is open to others and there is no key", "umbel keys create web --scope infer")
    if all(Scope.ADMIN in key.scopes for key in live):
        return warning("every key may do everything", "umbel keys create web --scope infer, and give out that one")
    return fine(f"{human_number(len(live), 'key')} for {patient.host}")


def _live_keys(patient: Patient) -> "list[ApiKey]":
    try:
        return [key for key in patient.registry.keys.list() if key.revoked_at is None]
    except Skip:  # no registry, no key
        return []


def token(patient: Patient) -> Finding:
    """The whole way: tokenizer, backbone, engine, text."""
    from umbel.engine import Engine, GenerateRequest

    backbone = patient.loaded
    engine = Engine(backbone, patient.registry, kv_bytes=_KV_BYTES, adapter_bytes=0, max_rows=1, max_length=64)
    try:
        ids = tuple(backbone.tokenizer.encode("Hello"))
        answer = engine.submit(GenerateRequest(tokens=ids, adapter=None, max_tokens=1)).result()
    finally:
        engine.close()
    dtype = str(backbone.dtype).removeprefix("torch.")
    form = "" if backbone.quantised is None else f" with {told(backbone.quantised)}"
    return fine(f"{backbone.name} in {dtype}{form} continues 'Hello' with {answer.text!r}")


def company(patient: Patient) -> Finding:
    """Correctness rule 2: in bf16 a row has the same bits in any company; in fp32 it is equal within rounding."""
    from umbel.engine.selfcheck import check_rows

    report = check_rows(patient.loaded)
    if report.bit_equal or report.dtype in ("float32", "float64"):
        return fine(report.summary)
    return warning(report.summary, "umbel serve --dtype fp32 where answers must not depend on company")


CONDITIONS = (
    Condition("port", port),
    Condition("keys", keys),
)
HEAVY = (
    Condition("one token", token, heavy=True),
    Condition("company", company, heavy=True),
)
