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


def test_the_work_of_a_pass_grows_with_its_rows_and_a_device_says_how_long_it_takes(run):
    one, two = (json.loads(run("estimate", "--batch-size", rows, "--tflops", "2", "--json").out) for rows in "12")
    assert two["operations"] == 2 * one["operations"] > 0
    assert one["seconds"] == one["operations"] / 2e12
    assert "a pass takes at least" in run("estimate", "--tflops", "1e-6").out
    assert json.loads(run("estimate", "--json").out)["seconds"] is None


def test_what_cannot_be_estimated_is_told(run):
    assert run("estimate", "--tflops", "0").code == 2
    assert "did you mean --rank?" in run("estimate", "--rnk", "3").err
    assert run("estimate", "--memory", "3x").code == 2
    assert run("estimate", "nowhere").code == 3
    assert "N must divide 4" in run("estimate", "--nproc", "4", "--strategy", "hsdp=3").err
