"""Three steps of a recipe in plain transformers and peft, of any version; prints what torch's allocator counted.

Run by `rehearse.py`, with the flat settings of the recipe and the model's config as JSON.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

STEPS = 3


def build(recipe: dict[str, Any], config: dict[str, Any]) -> Any:
    """Return the model with random weights on the GPU, ready to train."""
    settings = AutoConfig.for_model(**config)
    settings.use_cache = False
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(
            settings,
            attn_implementation=recipe["attn_implementation"],
            torch_dtype=getattr(torch, recipe["dtype"]),
        )
    if recipe["method"] == "qlora":
        from peft import prepare_model_for_kbit_training

        quantize(model, recipe)
        if recipe["prepare_kbit"]:
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if recipe["method"] != "full":
        from peft import LoraConfig, get_peft_model

        rank, dropout = recipe["rank"], recipe["lora_dropout"]
        adapted = recipe["target_modules"]
        if adapted == "attention":
            adapted = ["q_proj", "k_proj", "v_proj", "o_proj"]
        model = get_peft_model(model, LoraConfig(r=rank, lora_dropout=dropout, target_modules=adapted))
    if recipe["gradient_checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": recipe.get("use_reentrant", False)})
        if recipe["method"] != "full":
            model.enable_input_require_grads()
    model.train()
    return model


def quantize(model: Any, recipe: dict[str, Any]) -> None:
    """Quantise every linear layer but the head to 4 bits, as `from_pretrained` does with a quantization_config."""
    import bitsandbytes

    kind, double = recipe["quant_type"], recipe["double_quant"]
    for name, linear in list(model.named_modules()):
        if isinstance(linear, torch.nn.Linear) and name != "lm_head":
            layer = bitsandbytes.nn.Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=False,
                compute_dtype=torch.bfloat16,
                compress_statistics=double,
                quant_type=kind,
                device="meta",
            )
            layer.weight = bitsandbytes.nn.Params4bit(
                linear.weight.data, requires_grad=False, compress_statistics=double, quant_type=kind
            ).to("cuda")
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
    model.is_loaded_in_4bit = True


def main() -> None:
    """Train, and print the peaks of the last step."""
    recipe, config = (json.loads(argument) for argument in sys.argv[1:3])
    model = build(recipe, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    torch.cuda.empty_cache()
    shape = recipe["batch_size"], recipe["seq_len"]
    for _ in range(STEPS):
        torch.cuda.reset_peak_memory_stats()
        optimizer.zero_grad(set_to_none=True)
        batch = {name: torch.zeros(shape, dtype=torch.int64, device="cuda") for name in ("input_ids", "labels")}
        with torch.autocast("cuda", torch.bfloat16) if recipe["mixed_precision"] == "bf16" else nullcontext():
            loss = model(**batch).loss
        loss.backward()
        del loss
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    stats = torch.cuda.memory_stats()
    print("FOUND", json.dumps({counter: stats[f"{counter}_bytes.all.peak"] for counter in ("requested", "allocated")}))


if __name__ == "__main__":
    main()
