"""Names under which others publish a model of the catalogue: copies, quantised copies and tuned releases.

Each rule is one line of a table. A rule only takes an ending off a name, or changes its beginning; what is left must be
a name of the catalogue in full. So no rule leads to another size or generation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

MIRRORS = frozenset(
    {
        "alpindale",
        "axolotl-ai-co",
        "axolotl-quants",
        "bartowski",
        "casperhansen",
        "cohereforai",  # the former name of CohereLabs
        "decapoda-research",
        "hugging-quants",
        "huggyllama",
        "lmstudio-community",
        "meta-llama",
        "mhenrichsen",
        "mistral-community",
        "mlx-community",
        "models",  # the folder of local copies in tools' examples
        "neuralmagic",
        "nousresearch",
        "redhatai",
        "techxgenus",
        "thebloke",
        "thudm",  # the former name of zai-org
        "unsloth",
    }
)
"""Publishers, in lower case, who copy others' models under the models' own last parts."""

STORED = (
    r"(.+?)-((unsloth-|dynamic-)?bnb-[48]bit|bnb-nf4-bf16|dequantized|(mlx-)?[34568]bit|gptq(-int[348])?|awq(-int4)?|"
    r"gguf|fp8(-dynamic|-block)?|nvfp4|mxfp4|fp16|bf16|mlx)"
)
"""Regular expression of a name with an ending that says how the weights are stored."""
QUANTIZED: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        r"(unsloth-|dynamic-)?bnb-4bit|bnb-nf4-bf16",
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ),
    (r"gptq(-int4)?", {"quant_method": "gptq", "bits": 4}),
    (r"awq(-int4)?", {"quant_method": "awq", "bits": 4}),
)
"""Regular expression of an ending → the quantization_config of such copies. Adapters can train on them as they are."""
TUNED = r"(.+?)-((instruct|thinking|reasoning|chat|it|base|pt)(-\d{4})?|sft|dpo|hf)"
"""Regular expression of a name with an ending that says how the model was tuned, with the month of that release, or the
files' format."""

ALIASES = {
    "agentica-org/deepcoder-14b-preview": "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B",
    "deepcogito/cogito-v1-preview-llama-3b": "meta-llama/Llama-3.2-3B",
    "deepcogito/cogito-v1-preview-qwen-14b": "Qwen/Qwen2.5-14B",
    "mistralai/pixtral-12b-2409": "mistral-community/pixtral-12b",
    "neuralmagic/sparse-llama-3.1-8b-2of4": "meta-llama/Llama-3.1-8B",
    "tinyllama/tinyllama_v1.1": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "tinyllama/tinyllama-1.1b-intermediate-step-1431k-3t": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "unsloth/mistral-7b": "mistralai/Mistral-7B-v0.1",
    "unsloth/pixtral-12b-2409": "mistral-community/pixtral-12b",
    "unsloth/solar-10.7b": "upstage/SOLAR-10.7B-v1.0",
    "unsloth/tinyllama": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "unsloth/tinyllama-chat": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "unsloth/zephyr-sft": "HuggingFaceH4/mistral-7b-sft-beta",
}
"""Other names, in lower case, that no rule derives → name in the catalogue."""


def names_behind(text: str) -> Iterator[str]:
    """Yield the names, in lower case, that the model ``text`` may have in the catalogue, the nearest first.

    A name without a publisher stands for that name of any publisher.
    """
    publisher, _, last = text.lower().rpartition("/")
    copied = publisher in MIRRORS
    for name in _without_endings(last):
        if alias := ALIASES.get(f"{publisher}/{name}"):
            yield alias.lower()
        for spelling in _spellings(name):
            if publisher:
                yield f"{publisher}/{spelling}"
            if copied or not publisher:
                yield spelling


def quantization_of(text: str) -> dict[str, Any] | None:
    """Return the quantization_config that the ending of the name ``text`` stands for; None if it says nothing."""
    return next((config for ending, config in QUANTIZED if re.fullmatch(rf".+-(?:{ending})", text.lower())), None)


def _without_endings(name: str) -> Iterator[str]:
    yield name
    for endings in (STORED, TUNED):
        if ending := re.fullmatch(endings, name):
            yield from _without_endings(ending[1])


def _spellings(name: str) -> Iterator[str]:
    """Yield ``name`` with and without what publishers put around it."""
    yield name
    yield f"{name}-hf"  # weights converted for transformers
    if name.startswith("meta-llama-"):  # the Hub renamed Llama 3.1, and kept Meta-Llama-3
        yield name.removeprefix("meta-")
    elif name.startswith("llama-"):
        yield f"meta-{name}"
