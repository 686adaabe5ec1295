"""The registry: adapters, their versions and everything that is known about them, kept in SQL and a folder of blobs.

``Registry.open(settings)`` opens a home's registry. What its parts return are the frozen values of ``records``.
"""

from umbel.registry.registry import Registry

__all__ = ["Registry"]
