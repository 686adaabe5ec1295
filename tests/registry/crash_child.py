"""A process that publishes in children of its own, which a failpoint may kill. Started once; a fork costs milliseconds.

One JSON line in per round: a list of jobs that run at once. One JSON line out: their exit statuses.
"""

import json
import os
import sys
import traceback
from pathlib import Path

from umbel.core.contract import Contract, OutputHead
from umbel.core.settings import Settings
from umbel.registry import Registry


def work(job):
    os.environ["UMBEL_FAILPOINT"] = job["failpoint"]
    home = Path(job["home"])
    settings = Settings(home=home, database_url=job["database_url"], store_url=str(home / "store"))
    with Registry.open(settings) as registry:
        if job["do"] == "gc":
            registry.gc(dry_run=False, grace_ms=0)
            return
        contract = Contract(output_head=OutputHead.GENERATE)
        for weights in job["weights"]:
            files = {"adapter_model.safetensors": weights.encode(), "adapter_config.json": b"{}"}
            given = {"method": "lora", "config": {}, "contract": contract, "backbone": job["backbone"]}
            registry.publish(files, name=job["name"], **given)


def child(job):
    pid = os.fork()
    if pid:
        return pid
    try:
        work(job)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


for line in sys.stdin:
    pids = [child(job) for job in json.loads(line)]
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
