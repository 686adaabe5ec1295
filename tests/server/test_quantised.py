"""A server tells the form of its backbone, and of each version the form that it was trained on."""

import logging

import pytest
from fastapi.testclient import TestClient

from umbel.backbone.loading import load_backbone
from umbel.server.app import create_app
from umbel.server.assembly import running
from umbel.server.service import Capacity, ServerConfig


@pytest.fixture(scope="module")
def asked(home):
    """A client of a server on int8 linears, with a version that was trained on such ones."""
    contract = home.registry.versions.get("mood").contract.model_copy(update={"quantised": "int8"})
    home.publish("frugal", contract, seed=21)
    backbone = load_backbone(home.backbone.folder, dtype="float32", packed=True, name="tiny", quantise="int8")
    capacity = Capacity(4, 10_000_000, 10_000_000)
    with (
        running(backbone, home.registry, capacity, ServerConfig()) as parts,
        TestClient(create_app(parts.service), base_url="http://localhost") as client,
    ):
        yield client


def test_models_and_status_tell_the_form(asked):
    models = {model["id"]: model for model in asked.get("/v1/models").json()["data"]}
    assert models["tiny"]["quantised"] == models["frugal"]["quantised"] == "int8"
    assert models["mood"].get("quantised") is None
    assert asked.get("/v1/models/frugal").json()["quantised"] == "int8"
    assert asked.get("/v1/status").json()["quantised"] == "int8"


def test_a_version_that_was_trained_on_another_form_answers_and_is_told_once(asked, caplog):
    with caplog.at_level(logging.WARNING, logger="umbel.server"):
        for _ in range(2):
            assert asked.post("/v1/classify", json={"model": "stars", "input": "hi"}).status_code == 400
            assert asked.post("/v1/classify", json={"model": "mood", "input": "hi"}).status_code == 200
            assert asked.post("/v1/classify", json={"model": "frugal", "input": "hi"}).status_code == 200
    said = [record.getMessage() for record in caplog.records if "was trained on" in record.getMessage()]
    assert sum("mood:1 was trained on weights as in the checkpoint" in one for one in said) == 1
    assert not any("frugal" in one for one in said)
