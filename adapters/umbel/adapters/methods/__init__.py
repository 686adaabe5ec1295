"""One file per method. ``umbel.adapters.catalog`` finds every ``METHOD`` in this folder."""
