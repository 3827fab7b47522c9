"""How the report writes quantities. `js/quantities.js` says the same for the charts."""

from __future__ import annotations

from datetime import datetime

MIB = 2**20
GIB = 2**30


def format_bytes(count: int | None) -> str:
    """Return ``count`` bytes in GiB, or in MiB below 1 GiB, with the unit."""
    if count is None:
        return "–"
    if count >= GIB:
        return f"{count / GIB:,.2f} GiB"
    mib = count / MIB
    return f"{mib:,.2f} MiB" if mib >= 1 else f"{mib:.3f} MiB" if count else "0 MiB"


def format_share(share: float | None) -> str:
    """Return ``share`` as a signed percentage."""
    if share is None:
        return "–"
    percent = 100 * share
    return f"{percent:+,.2f}%".replace("-", "−") if abs(percent) < 10 else f"{percent:+,.0f}%".replace("-", "−")


def format_number(number: float | None) -> str:
    """Return ``number`` with three significant digits or all those before the decimal point."""
    if number is None:
        return "–"
    size = abs(number)
    return f"{number:,.0f}" if size >= 100 else f"{number:.1f}" if size >= 10 else f"{number:.2f}"


def format_loss(loss: float | None) -> str:
    """Return a loss with four decimals."""
    return "–" if loss is None else f"{loss:.4f}"


def format_date(iso: str) -> str:
    """Return the date and minute of an ISO 8601 time, or the text itself where it is none."""
    try:
        return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return iso


def plural(count: int, noun: str) -> str:
    """Return ``count`` and ``noun`` in its number."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
