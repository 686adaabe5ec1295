"""llama.cpp through llama-cpp-python's low-level calls, in its own environment (`scripts/peers.sh`), which builds it
for this processor; never imported by the benchmark, which starts it.

One ``llama_decode`` carries a token of every sequence, as llama.cpp's own `batched-bench` does. The model is the 4-bit
file that the backbone was made from. A LoRA of llama.cpp acts on a whole batch, so only bare work is for it.
"""

import ctypes
import time
from importlib.metadata import version
from typing import Any

from benchmarks.peers.lines import serve

BATCH = 2048  # tokens of one llama_decode, its default


def load(job: dict[str, Any]) -> Any:
    """``gguf``, ``threads``, ``rows``, ``length``."""
    import llama_cpp as llama

    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(job["gguf"].encode(), llama.llama_model_default_params())
    options = llama.llama_context_default_params()
    options.n_ctx = job["rows"] * job["length"]
    options.n_seq_max = job["rows"]
    options.n_batch = BATCH
    options.n_threads = options.n_threads_batch = job["threads"]
    context = llama.llama_init_from_model(model, options)
    if not context:
        raise SystemExit(f"llama.cpp made no context for {job['gguf']}")
    settings = {"threads": job["threads"], "n_batch": BATCH, "system": llama.llama_print_system_info().decode()}
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    facts = {"version": f"llama-cpp-python {version('llama-cpp-python')}", "settings": settings}
    return lambda work: run(llama, context, vocabulary, work), facts


def run(llama: Any, context: Any, vocabulary: int, work: dict[str, Any]) -> dict[str, Any]:
    """``prompts``, ``new_tokens`` -> seconds, and each request's token times since the start; greedy."""
    prompts, rows = work["prompts"], range(len(work["prompts"]))
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    times: list[list[float]] = [[] for _ in rows]
    likeliest = [0 for _ in rows]
    start = time.perf_counter()

    def step(entries: list[tuple[int, int, int, bool]]) -> None:
        for row, token in decode(llama, context, vocabulary, entries):
            likeliest[row] = token
            times[row].append(time.perf_counter() - start)

    for group in together(prompts):
        step([(t, at, i, at == len(prompts[i]) - 1) for i in group for at, t in enumerate(prompts[i])])
    for made in range(work["new_tokens"] - 1):
        step([(likeliest[i], len(prompts[i]) + made, i, True) for i in rows])
    return {"seconds": time.perf_counter() - start, "times": times}


def together(prompts: list[list[int]]) -> list[list[int]]:
    """Indices of whole prompts that fit one call."""
    groups: list[list[int]] = []
    room = 0
    for i, prompt in enumerate(prompts):
        if len(prompt) > room:
            groups.append([])
            room = BATCH
        groups[-1].append(i)
        room -= len(prompt)
    return groups


def decode(
    llama: Any, context: Any, vocabulary: int, entries: list[tuple[int, int, int, bool]]
) -> list[tuple[int, int]]:
    """One call over (token, position, row, wanted) entries; (row, likeliest next token) of the wanted ones."""
    import numpy as np

    batch = llama.llama_batch_init(len(entries), 0, 1)
    try:
        batch.n_tokens = len(entries)
        for j, (token, position, row, wanted) in enumerate(entries):
            batch.token[j], batch.pos[j], batch.n_seq_id[j] = token, position, 1
            batch.seq_id[j][0], batch.logits[j] = row, wanted
        if llama.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")
        found = []
        for j, (_, _, row, wanted) in enumerate(entries):
            if wanted:
                logits = ctypes.cast(llama.llama_get_logits_ith(context, j), ctypes.POINTER(ctypes.c_float))
                found.append((row, int(np.ctypeslib.as_array(logits, (vocabulary,)).argmax())))
        return found
    finally:
        llama.llama_batch_free(batch)


if __name__ == "__main__":
    serve(load)
