"""Format quantities for the templates. `js/quantities.js` has the same formats for the page's scripts."""

from __future__ import annotations

from datetime import datetime

from lorabench.estimator.quantities import in_gib


def format_bytes(count: int | None) -> str:
    """Return ``count`` bytes in GiB or MiB (`in_gib`)."""
    return "–" if count is None else in_gib(count)


def format_share(share: float | None) -> str:
    """Return ``share`` as a signed percentage."""
    if share is None:
        return "–"
    percent = 100 * share
    if abs(percent) < 0.005:
        return "under 0.01%" if share else "0%"
    return f"{percent:+,.2f}%".replace("-", "−") if abs(percent) < 10 else f"{percent:+,.0f}%".replace("-", "−")


def format_number(number: float | None) -> str:
    """Return ``number`` with three significant digits, or all digits before the decimal point."""
    if number is None:
        return "–"
    size = abs(number)
    return f"{number:,.0f}" if size >= 100 else f"{number:.1f}" if size >= 10 else f"{number:.2f}"


def format_seconds(seconds: float | None) -> str:
    """Return ``seconds`` in seconds, or in milliseconds below one."""
    if seconds is None:
        return "–"
    return f"{format_number(seconds)} s" if seconds >= 1 else f"{format_number(1000 * seconds)} ms"


def format_loss(loss: float | None) -> str:
    """Return a loss with four decimals."""
    return "–" if loss is None else f"{loss:.4f}"


def format_date(iso: str) -> str:
    """Return date and minute of an ISO 8601 time; any other text unchanged."""
    try:
        return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return iso


def plural(count: int, noun: str) -> str:
    """Return ``count`` with ``noun`` in singular or plural."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
