"""The subject of a page: runs, models and GPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from lorabench.estimator.devices.device import Device, all_devices, find_device
from lorabench.estimator.errors import UserError
from lorabench.estimator.models.read_config import MODEL_TYPES, read_config
from lorabench.estimator.models.spec import ModelSpec
from lorabench.reports.runs import Run

MOST_MODELS = 4
"""Maximum number of the runs' models with estimates on the page: each takes a second or two."""
USUAL_GPU = "rtx-4090"
"""The selected GPU if none was named and none ran."""


class Subject(NamedTuple):
    """The data of all sections; any field may be empty."""

    runs: Sequence[Run]
    models: Sequence[ModelSpec] = ()
    """Distinct models with a closed form."""
    devices: Sequence[Device] = ()
    """The named GPUs, or else the GPUs of the runs."""

    @property
    def gpus(self) -> list[Device]:
        """All selectable GPUs: `devices`, then the rest of the catalogue."""
        found: dict[str, Device] = {}
        for device in (*(self.devices or [find_device(USUAL_GPU)]), *all_devices()):
            found.setdefault(device.name, device)
        return [*found.values()]


def subject_of(runs: Sequence[Run], models: Sequence[ModelSpec] = (), devices: Sequence[Device] = ()) -> Subject:
    """Return the subject of a page: named models and those with most runs; named GPUs, or those of the runs."""
    distinct: dict[bytes, ModelSpec] = {}
    for spec in (*models, *_models_of(runs)):
        distinct.setdefault(msgspec.json.encode(msgspec.structs.replace(spec, name="", assumptions=())), spec)
    return Subject(runs, [*distinct.values()], devices or _devices_of(runs))


def _models_of(runs: Sequence[Run]) -> list[ModelSpec]:
    counts: Counter[bytes] = Counter()
    names: dict[bytes, str] = {}
    for run in runs:
        if run.record.model_config.get("model_type") in MODEL_TYPES:
            config = msgspec.json.encode(run.record.model_config, order="sorted")
            counts[config] += 1
            names.setdefault(config, run.model)
    found: list[ModelSpec] = []
    for config, _ in counts.most_common(MOST_MODELS):
        try:
            found.append(read_config(msgspec.json.decode(config), names[config]))
        except UserError:
            continue
    return found


def _devices_of(runs: Sequence[Run]) -> list[Device]:
    found: dict[str, Device] = {}
    for run in runs:
        device = run.record.device.catalogued
        if device is not None:
            found.setdefault(device.name, device)
    return [*found.values()]
