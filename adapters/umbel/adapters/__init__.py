"""Adapters: one file per method and per output head, how they are put on a batch, and PEFT's folder format."""
