"""Run records made up for tests: consistent in themselves, measured by nobody."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from msgspec.structs import replace

from lorabench.bench.records.measurement import Measurement
from lorabench.bench.records.record import DeviceFacts, Environment, Outcome, Prediction, RunRecord
from lorabench.bench.records.rehearsal import Rehearsal
from lorabench.estimator.dtypes import ITEMSIZE
from lorabench.estimator.memory.breakdown import COMPONENTS, PHASES, Breakdown
from lorabench.estimator.recipes.parameters import ParameterCounts
from lorabench.estimator.recipes.recipe import Recipe, make_recipe

MODEL_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
"""A small Llama; what `sample_record` takes unless told otherwise."""

STEP_SECONDS = (0.412, 0.405, 0.409, 0.418, 0.403, 0.407, 0.411, 0.404, 0.408, 0.415)
WARMUP_STEP_SECONDS = (0.731, 0.442)
LOSSES = (6.93, 6.81, 6.64, 6.42, 6.17, 5.93, 5.71, 5.52, 5.37, 5.25, 5.16, 5.09)


def sample_record(
    *,
    model: str = "demo/llama-2m",
    model_config: dict[str, Any] | None = None,
    suite: str = "demo",
    started_at: str = "2026-03-14T09:26:53Z",
    device: DeviceFacts | None = None,
    backend: Literal["cpu", "cuda"] = "cpu",
    device_name: str | None = None,
    outcome: Outcome = "ok",
    message: str | None = None,
    traceback: str | None = None,
    peak_allocated_bytes: int | None = None,
    predicted_peak_bytes: int | None = None,
    step_seconds: Sequence[float] = STEP_SECONDS,
    warmup_step_seconds: Sequence[float] = WARMUP_STEP_SECONDS,
    losses: Sequence[float | None] = LOSSES,
    **recipe_options: Any,
) -> RunRecord:
    """Return a record of a small Llama, trained with LoRA on a CPU, with what the arguments change.

    ``recipe_options`` are a recipe's settings. ``model_config`` must have the keys of `MODEL_CONFIG`. Peaks are at
    least the bytes of the states (weights, gradients, optimizer states); what they have above is activations and
    logits. Without peaks given, the prediction is 1 % under the measurement's activations.
    """
    config = MODEL_CONFIG if model_config is None else model_config
    recipe = make_recipe(model, **{"seq_len": 256, **recipe_options})
    if device is None:
        names = {"cpu": "Example CPU @ 2.50GHz", "cuda": "NVIDIA Example 24GB"}
        memory = {"cpu": 8 * 2**30, "cuda": 24 * 2**30}
        device = DeviceFacts(backend=backend, name=device_name or names[backend], memory_bytes=memory[backend])
    parameters = _parameters(recipe, config)
    states = _states(recipe, config, parameters)
    measured = _breakdown(recipe, config, states, peak_allocated_bytes, 1.0, device.backend)
    predicted = _breakdown(recipe, config, states, predicted_peak_bytes, 0.99, device.backend)
    return RunRecord(
        digest=recipe.digest(config),
        suite=suite,
        recipe=recipe,
        model_config=config,
        started_at=started_at,
        device=device,
        environment=Environment(
            lorabench="0.1.0",
            python="3.11.7",
            operating_system="Linux 6.1",
            packages={"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "bitsandbytes": "0.50.2"},
            cpu_threads=2,
            cuda="12.8" if device.backend == "cuda" else None,
            driver="570.86.15" if device.backend == "cuda" else None,
        ),
        outcome=outcome,
        message=message if message is not None or outcome == "ok" else f"made-up {outcome}",
        traceback=traceback,
        prediction=Prediction(parameters=parameters, memory=predicted),
        measurement=Measurement(
            parameters=parameters,
            memory=measured,
            step_seconds=tuple(step_seconds),
            warmup_step_seconds=tuple(warmup_step_seconds),
            tokens_per_step=recipe.tokens * recipe.gradient_accumulation,
            losses=tuple(losses),
        )
        if outcome == "ok"
        else None,
    )


def as_rehearsed(record: RunRecord) -> RunRecord:
    """Return ``record`` as if a null GPU had run it."""
    rehearsal = None if record.measurement is None else Rehearsal.of(record.measurement)
    return replace(record, measurement=None, seconds=None, rehearsed=True, rehearsal=rehearsal)


def _linear_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    narrow = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    return {
        "q_proj": (hidden, hidden),
        "k_proj": (hidden, narrow),
        "v_proj": (hidden, narrow),
        "o_proj": (hidden, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def _parameters(recipe: Recipe, config: dict[str, Any]) -> ParameterCounts:
    shapes = _linear_shapes(config)
    layers, hidden, vocab = config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]
    attention = layers * sum(i * o for name, (i, o) in shapes.items() if name[0] in "qkvo")
    feed_forward = layers * sum(i * o for i, o in shapes.values()) - attention
    parts = {
        "embedding": vocab * hidden,
        "attention": attention,
        "feed_forward": feed_forward,
        "norm": (2 * layers + 1) * hidden,
        "head": 0 if config["tie_word_embeddings"] else vocab * hidden,
    }
    groups = {"all-linear": list(shapes), "attention": list(shapes)[:4], "mlp": list(shapes)[4:]}
    targets = "" if recipe.adapter is None else recipe.adapter.target_modules or ""
    adapted = groups.get(targets, targets.split(","))
    adapter = layers * sum((recipe.rank or 0) * sum(shapes[name]) for name in adapted if name)
    return ParameterCounts(
        total=sum(parts.values()) + adapter,
        trainable=adapter if recipe.adapter is not None else sum(parts.values()),
        quantized=attention + feed_forward if recipe.quantization is not None else 0,
        adapter=adapter,
        by_part=parts,
    )


def _states(recipe: Recipe, config: dict[str, Any], parameters: ParameterCounts) -> dict[str, int]:
    """Return the bytes that stay between steps, with the gradients, for an AdamW of two states."""
    unquantized = parameters.total - parameters.adapter - parameters.quantized
    wide = recipe.prepared or recipe.dtype == "float32"
    trained = parameters.trainable * ITEMSIZE[recipe.trained_dtype]
    return {
        "weights": unquantized * (4 if wide else ITEMSIZE[recipe.dtype]),
        "quantized_weights": parameters.quantized // 2 + math.ceil(parameters.quantized / 64),
        "adapters": parameters.adapter * ITEMSIZE[recipe.trained_dtype],
        "gradients": trained,
        "optimizer_states": 2 * trained,
        "buffers": 2 * 8 * recipe.tokens,
    }


def _breakdown(
    recipe: Recipe,
    config: dict[str, Any],
    states: dict[str, int],
    peak_bytes: int | None,
    share: float,
    backend: Literal["cpu", "cuda"],
) -> Breakdown:
    stay = sum(states.values())
    if peak_bytes is None:
        work = int(recipe.tokens * (4 * config["vocab_size"] + 32 * config["hidden_size"]) * share)
        peak_bytes = stay + work
    assert peak_bytes >= stay, f"the states alone take {stay} bytes"
    logits = min(4 * recipe.tokens * config["vocab_size"], peak_bytes - stay)
    components = dict.fromkeys(COMPONENTS, 0) | states
    components |= {"logits": logits, "activations": peak_bytes - stay - logits}
    adapted = stay - states["gradients"] - states["optimizer_states"] - states["buffers"]
    loaded = adapted - states["adapters"]
    phases = dict(zip(PHASES, (loaded, adapted, peak_bytes - states["gradients"], peak_bytes, stay), strict=True))
    return Breakdown(
        components=components,
        phase="backward",
        peak_allocated_bytes=peak_bytes,
        phase_peaks_bytes=phases,
        peak_reserved_bytes=math.ceil(peak_bytes / 2**21) * 2**21 if backend == "cuda" else None,
        device_total_bytes=math.ceil(peak_bytes / 2**21) * 2**21 + 512 * 2**20 if backend == "cuda" else None,
    )
