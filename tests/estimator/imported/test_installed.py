"""The tables know the keys and defaults of the installed libraries."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lorabench.estimator.imported import peft_config, shared_rules, training_arguments
from lorabench.estimator.imported.keys import Keys

pytestmark = pytest.mark.versions


def _fields(kind: Any) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(kind)}


def _wrong_defaults(fields: dict[str, Any], keys: Keys) -> dict[str, Any]:
    declared = {name: key.default for name, key in keys.items() if key.effect and key.default is not None}
    return {name: fields[name] for name, value in declared.items() if name in fields and fields[name] != value}


def test_every_training_argument_is_declared_with_its_default() -> None:
    from transformers import TrainingArguments

    fields = _fields(TrainingArguments)
    assert set(fields) <= set(training_arguments.KEYS)
    # None is off; a name of the optimizer is a text of its enumeration.
    assert set(_wrong_defaults(fields, training_arguments.KEYS)) <= {"gradient_checkpointing", "optim"}
    assert fields["gradient_checkpointing"] in (None, False)
    assert str(getattr(fields["optim"], "value", fields["optim"])) == training_arguments.KEYS["optim"].default


def test_every_setting_of_lora_is_declared_with_its_default() -> None:
    from peft import LoraConfig

    fields = _fields(LoraConfig)
    assert set(fields) <= set(peft_config.KEYS)
    assert set(_wrong_defaults(fields, peft_config.KEYS)) <= {"peft_type"}


def test_peft_adapts_these_modules_by_default() -> None:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as BY_PEFT

    shared = {kind for kind in shared_rules.PEFT_TARGETS if isinstance(BY_PEFT.get(kind), list)}
    assert len(shared) > 15
    assert {kind: BY_PEFT[kind] for kind in shared} == {
        kind: shared_rules.PEFT_TARGETS[kind].split(",") for kind in shared
    }
