"""``umbel estimate`` as a person meets it."""

import json


def test_it_tells_bytes_units_and_whether_it_fits(run):
    answer = run(
        "estimate", "--train", "all", "--nproc", "2", "--strategy", "fsdp", "--length", "16", "--memory", "1GB"
    )
    assert answer.code == 0, answer.err
    for part in ("tiny: 26,912 parameters", "weights", "gradients", "optimizer", "layers.1", "root", "fits: "):
        assert part in answer.out


def test_json_has_every_number(run):
    found = json.loads(run("estimate", "--rank", "4", "--length", "16", "--memory", "10k", "--json").out)
    assert found["fits"] is False
    assert found["trained"] == 4096
    assert found["peak"] > found["weights"] + found["optimizer"]


def test_what_cannot_be_estimated_is_told(run):
    assert "did you mean --rank?" in run("estimate", "--rnk", "3").err
    assert run("estimate", "--memory", "3x").code == 2
    assert run("estimate", "nowhere").code == 3
    assert "N must divide 4" in run("estimate", "--nproc", "4", "--strategy", "hsdp=3").err
