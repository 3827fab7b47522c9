"""Models on the Hugging Face Hub, and in its cache on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

TIMEOUT_SECONDS = 5
HUB_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
"""Regular expression of the ids of models."""


class Refusal(NamedTuple):
    """The reason why the Hub does not provide a model."""

    why: str
    unreachable: bool = False
    """Whether the Hub did not answer at all."""


def ask_hub(repository: str) -> Refusal | None:
    """Request the metadata of the config.json of ``repository`` once; return None if the Hub has the file.

    Call it before a download: without a network, downloads retry for half a minute.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        return Refusal("the hub was not asked, since huggingface_hub is not installed", unreachable=True)
    try:
        url = huggingface_hub.hf_hub_url(repository, "config.json")
        huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT_SECONDS)
    except errors.GatedRepoError:
        return Refusal("it is gated on the hub: accept its terms there and log in with `hf auth login`")
    except errors.RepositoryNotFoundError:
        return Refusal("the hub has no such public model")
    except errors.EntryNotFoundError:
        return Refusal("the hub's model has no config.json")
    except Exception as error:  # the network may raise anything
        return _unreachable(error)
    return None


def fetch_config(repository: str) -> Path | Refusal:
    """Return the path of the config.json of ``repository`` in the Hub's cache; download it if it is not there."""
    cached = cached_config(repository)
    if cached is not None:
        return cached
    refusal = ask_hub(repository)
    if refusal is not None:
        return refusal
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(repository, "config.json", etag_timeout=TIMEOUT_SECONDS))
    except Exception as error:  # network and cache folder may raise anything
        return _unreachable(error)


def cached_config(repository: str) -> Path | None:
    """Return the path of the config.json of ``repository`` in the Hub's cache; None if it is not there."""
    try:
        import huggingface_hub
    except ImportError:
        return None
    cached = huggingface_hub.try_to_load_from_cache(repository, "config.json")
    return Path(cached) if isinstance(cached, str) else None


def has_cached_weights(repository: str) -> bool:
    """Return whether weights of ``repository`` are in the Hub's cache."""
    config = cached_config(repository)
    return config is not None and any(config.parent.glob("*.safetensors"))


def _unreachable(error: Exception) -> Refusal:
    return Refusal(f"the hub cannot be reached ({type(error).__name__})", unreachable=True)
