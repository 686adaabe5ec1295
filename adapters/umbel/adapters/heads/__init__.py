"""One file per output head. ``umbel.adapters.catalog`` finds every ``HEAD`` in this folder."""
