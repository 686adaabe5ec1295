"""Bytes and counts as people read them."""


def human_bytes(count: int) -> str:
    """``269.1 MB``: powers of 1000, as disks are sold."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.95:
            return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def human_expected(count: float) -> str:
    """``1,250`` or ``2.5``: in whole numbers the parts would not sum to the whole."""
    return f"{count:,.1f}".removesuffix(".0")
