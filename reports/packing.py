"""Compress data for the page. Records are repetitive, and a page of a thousand must stay small enough to send."""

from __future__ import annotations

import zlib
from base64 import b64encode
from typing import Any

import msgspec


def pack(data: Any) -> str:
    """Return ``data`` as JSON, deflated, in base64; `js/store.js` unpacks it."""
    return b64encode(zlib.compress(msgspec.json.encode(data), 9)).decode()
