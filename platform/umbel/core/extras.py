"""What an installation without some extra lacks, told so that the next command mends it."""

from umbel.core.errors import Unavailable

_BROUGHT = {
    "serve": ("fastapi", "prometheus_client", "python_multipart", "starlette", "uvicorn"),
    "train": ("accelerate", "matplotlib", "peft"),
    "quantised": ("bitsandbytes",),
    "postgres": ("psycopg",),
    "torch": ("gguf", "numpy", "safetensors", "scipy", "statsmodels", "tokenizers", "torch", "transformers"),
}
"""Modules by the extra of ``pyproject.toml`` that brings them."""


def missing_extra(error: ModuleNotFoundError) -> Unavailable | None:
    """None where no extra brings the module: then something else is wrong."""
    module = (error.name or "").partition(".")[0]
    extra = next((extra for extra, modules in _BROUGHT.items() if module in modules), None)
    if extra is None:
        return None
    wanted = "serve,train" if extra == "torch" else extra
    return Unavailable(
        f"this needs {module}, which is not installed here.",
        code="missing_extra",
        hint=f"pip install 'umbel[{wanted}]' (in a clone: pip install '.[{wanted}]')",
    )
