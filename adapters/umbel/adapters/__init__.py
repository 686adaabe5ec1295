"""Adapters: one file per method and per output head, how they are put on a batch, and PEFT's folder format."""

DEFAULT_METHOD = "lora"
"""The method of a task that names none."""
