"""Data that a page holds compressed: records repeat themselves, and a thousand of them should stay easy to pass on."""

from __future__ import annotations

import zlib
from base64 import b64encode
from typing import Any

import msgspec


def pack(data: Any) -> str:
    """Return ``data`` as JSON, deflated, in base64: what `js/store.js` unpacks."""
    return b64encode(zlib.compress(msgspec.json.encode(data), 9)).decode()
