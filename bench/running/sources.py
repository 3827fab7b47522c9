"""Check and identify the weights and the text that recipes use."""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from msgspec import Struct

from lorabench.bench.records.run_settings import Settings
from lorabench.bench.suites.suite import Suite
from lorabench.bench.training.text import file_documents
from lorabench.estimator.errors import UserError
from lorabench.estimator.input_files import open_input
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.models.hub import HUB_ID, Refusal, ask_hub, has_cached_weights

DIGITS = 12
"""Hex digits of a digest."""


class SourceDigests(Struct, frozen=True, kw_only=True):
    """Digests that identify the text and the weights by content."""

    dataset: str | None = None
    weights: str | None = None


def check_sources(suite: Suite, settings: Settings) -> None:
    """Refuse unusable weights and datasets before training.

    Raises:
        UserError: the dataset is bad, or the folder has no weights, or weights of another model.
    """
    if settings.dataset is not None:
        for _ in file_documents(Path(settings.dataset)):
            pass
    weights = settings.weights
    if weights is None or weights == "hub":
        return
    if not (weights and _weight_files(weights)):
        raise UserError(f"weights {weights}: not a folder with *.safetensors: name one, or write hub or random")
    config = find_model(str(Path(weights).resolve())).config
    for resolved in suite.recipes:
        if resolved.spec.config != config:
            raise UserError(f"weights {weights}: of another model than {resolved.spec.name}: run this folder as MODEL")


def hub_environment(suite: Suite, settings: Settings) -> dict[str, str]:
    """Return environment variables for training processes to find the hub's weights.

    If the hub cannot be reached, they look into its cache alone: they would ask again for minutes.

    Raises:
        UserError: the hub does not give a model, and its weights are not in the cache.
    """
    if settings.weights != "hub":
        return {}
    refusals = [_refusal(name) for name in dict.fromkeys(resolved.spec.name for resolved in suite.recipes)]
    return {"HF_HUB_OFFLINE": "1"} if any(one is not None and one.unreachable for one in refusals) else {}


def _refusal(name: str) -> Refusal | None:
    """Return why the hub does not give the model, if the cache has it; None if the hub gives it."""
    instead = "name a folder with *.safetensors, or use random weights"
    if not re.fullmatch(HUB_ID, name):
        raise UserError(f"weights hub: {name} is no model of the hub: {instead}")
    refusal = ask_hub(name)
    if refusal is not None and not has_cached_weights(name):
        raise UserError(f"weights hub: there are none of {name}, since {refusal.why}: {instead}")
    return refusal


def digest_sources(settings: Settings) -> SourceDigests:
    """Return the digests of the files that `check_sources` has accepted; none for random weights and the hub's.

    It reads all weights of a folder, several files in parallel: some GB per second from memory. Afterwards they are in
    the page cache for the workers.

    Raises:
        UserError: a file cannot be read.
    """
    dataset, weights = settings.dataset, settings.weights
    try:
        return SourceDigests(
            dataset=None if dataset is None else _sha256(Path(dataset)).hex()[:DIGITS],
            weights=None if weights is None or weights == "hub" else _digest_of_weights(_weight_files(weights)),
        )
    except OSError as error:
        raise UserError(f"{error.filename}: cannot read the file: {error.strerror}") from error


def _weight_files(folder: str) -> list[Path]:
    return sorted(Path(folder).glob("*.safetensors"))


def _digest_of_weights(files: list[Path]) -> str:
    with ThreadPoolExecutor() as threads:
        return hashlib.sha256(b"".join(threads.map(_sha256, files))).hexdigest()[:DIGITS]


def _sha256(path: Path) -> bytes:
    with open_input(path) as file:
        return hashlib.file_digest(file, "sha256").digest()
