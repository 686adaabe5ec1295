"""vLLM on CPU, in its own environment (`scripts/peers.sh`); never imported by the benchmark, which starts it.

The engine lives in this process and is stepped by this thread, as umbel's is: no HTTP, no queue between processes,
no detokenizing.
"""

import os
import time
from typing import Any

from benchmarks.peers.lines import cores, serve


def load(job: dict[str, Any]) -> Any:
    """``backbone``, ``adapters`` (PEFT folders), ``rank``, ``eager``, ``threads``, ``rows``, ``length``."""
    _settings(cores()[: job["threads"]])
    import vllm
    from vllm.lora.request import LoRARequest

    loras = [LoRARequest(f"a{i}", i + 1, folder) for i, folder in enumerate(job["adapters"])]
    wearing = {"enable_lora": True, "max_loras": len(loras), "max_lora_rank": job["rank"]} if loras else {}
    options = {
        "dtype": "bfloat16",
        "max_model_len": job["length"],
        "max_num_seqs": job["rows"],
        "enforce_eager": job["eager"],
        "enable_prefix_caching": False,
        **wearing,
    }
    engine = vllm.LLM(model=job["backbone"], seed=0, disable_log_stats=True, **options).llm_engine
    facts = {
        "version": vllm.__version__,
        "torch": _version("torch"),
        "settings": {**options, "threads": job["threads"]},
    }
    return lambda work: run(engine, loras, work), facts


def _settings(on: list[int]) -> None:
    # before vLLM is imported; what the caller has set stays
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, as umbel's
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, on)))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def run(engine: Any, loras: list[Any], work: dict[str, Any]) -> dict[str, Any]:
    """``prompts``, ``worn``, ``new_tokens`` -> seconds, and each request's token times since the start."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    greedy = SamplingParams(
        temperature=0.0,
        max_tokens=work["new_tokens"],
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    times: list[list[float]] = [[] for _ in work["prompts"]]
    start = time.perf_counter()
    for i, (prompt, worn) in enumerate(zip(work["prompts"], work["worn"], strict=True)):
        lora = None if worn is None else loras[worn]
        engine.add_request(str(i), {"prompt_token_ids": prompt}, greedy, lora_request=lora)
    at = {}
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter() - start
        for output in outputs:
            # newer engines put a suffix behind the id they were given
            row = at.setdefault(output.request_id, int(output.request_id.split("-")[0]))
            times[row] += [now] * len(output.outputs[0].token_ids)
    return {"seconds": time.perf_counter() - start, "times": times}


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


if __name__ == "__main__":
    serve(load)
