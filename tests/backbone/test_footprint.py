"""What a serving process holds for nobody is bounded."""

import os
import subprocess
import sys

import pytest
import torch

from umbel.backbone import footprint
from umbel.backbone.footprint import keep_few_products
from umbel.backbone.linears import can_pack

PROGRAM = """
import torch
from umbel.backbone.footprint import give_back_freed, keep_few_products
keep_few_products()
def resident_set():
    give_back_freed()
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def products(first, last):
    for rows in range(first, last):
        torch.bmm(torch.ones(2, rows, 64, dtype=torch.bfloat16), torch.ones(2, 64, 64, dtype=torch.bfloat16))
products(2, 200)
before = resident_set()
products(200, 500)
print(resident_set() - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not can_pack(torch.bfloat16, torch.device("cpu")),
    reason="no oneDNN for bfloat16, or no /proc",
)
def test_products_of_ever_new_sizes_take_no_more_memory():
    """300 sizes take 170 MB where 1,024 are kept."""
    variables = {key: value for key, value in os.environ.items() if key not in footprint._CACHES}
    ended = subprocess.run([sys.executable, "-c", PROGRAM], env=variables, capture_output=True, text=True, check=True)
    assert int(ended.stdout) < 40 << 20


def test_what_the_environment_says_stands(monkeypatch):
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    keep_few_products()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
