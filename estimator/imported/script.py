"""A Python script that trains a recipe with transformers' Trainer and peft."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.errors import UserError
from lorabench.estimator.imported.shared_entries import (
    is_all_linear,
    lora_entries,
    module_names,
    saved_modules,
    trainer_entries,
)
from lorabench.estimator.losses.liger import FUSED_LOSS_ALONE
from lorabench.estimator.methods.four_bit import RECAST
from lorabench.estimator.methods.lora import LoRA
from lorabench.estimator.recipes.resolved import ResolvedRecipe

UNSAID = {
    "transformers": "the installed transformers runs",
    "bitsandbytes": "the installed bitsandbytes runs",
    "padding": "it packs its text",
    "keep_outputs": "Trainer keeps the loss alone",
}
"""Setting → the reason why a script with today's libraries cannot have it."""


def python_script(resolved: ResolvedRecipe) -> str:
    """Return a script that trains the recipe on the text of a file: ``python train.py TEXT [STEPS]``.

    Raises:
        UserError: Trainer cannot have one of the settings.
    """
    recipe = resolved.recipe
    for name, why in UNSAID.items():
        if recipe.setting(name):
            raise UserError(f"a script with transformers and peft cannot say {name} {recipe.setting(name)}: {why}")
    if recipe.loss not in ("standard", "liger"):
        raise UserError(f"a script with transformers and peft cannot say loss {recipe.loss}: use standard or liger")
    if recipe.adapter is not None and not isinstance(recipe.adapter, LoRA):
        raise UserError("a script is written for the methods full, lora and qlora: use one of them")
    lines = [*_head(resolved), "", *_model(resolved), "", *_training(resolved)]
    return "\n".join(lines) + "\n"


def _head(resolved: ResolvedRecipe) -> list[str]:
    in_4_bits, adapts = resolved.recipe.quantization is not None, resolved.recipe.adapter is not None
    quantized = ", BitsAndBytesConfig" if in_4_bits else ""
    prepares = ", prepare_model_for_kbit_training" if resolved.recipe.prepared else ""
    return [
        '"""Train on the text of a file: python train.py TEXT [STEPS]"""',
        "",
        "import sys",
        "from pathlib import Path",
        "",
        "import torch",
        *([f"from peft import LoraConfig, get_peft_model{prepares}"] if adapts else []),
        f"from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments{quantized}",
        "",
        f"MODEL = {resolved.recipe.model!r}",
    ]


def _model(resolved: ResolvedRecipe) -> list[str]:
    recipe = resolved.recipe
    lines = ["model = AutoModelForCausalLM.from_pretrained("]
    lines += [
        "    MODEL,",
        f"    dtype=torch.{recipe.dtype},",
        f"    attn_implementation={recipe.attn_implementation!r},",
    ]
    if recipe.quantization is not None:
        lines += [
            "    quantization_config=BitsAndBytesConfig(",
            "        load_in_4bit=True,",
            f"        bnb_4bit_quant_type={recipe.setting('quant_type')!r},",
            f"        bnb_4bit_use_double_quant={recipe.setting('double_quant')},",
            f"        bnb_4bit_compute_dtype=torch.{recipe.compute_dtype},",
            "    ),",
        ]
    lines.append(")")
    if recipe.prepared:
        lines.append("model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)")
    if isinstance(recipe.adapter, LoRA):
        lines += _adapters(resolved, recipe.adapter)
    if recipe.recast:
        lines += [
            "for name, module in model.named_modules():",
            f'    if "norm" not in name and any(part in name for part in {RECAST}):',
            '        if hasattr(module, "weight") and module.weight.dtype == torch.float32:',
            "            module.to(torch.bfloat16)",
        ]
    return lines


def _adapters(resolved: ResolvedRecipe, adapter: LoRA) -> list[str]:
    arguments: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "r": adapter.rank,
        **lora_entries(resolved.recipe),
        "target_modules": "all-linear" if is_all_linear(resolved) else module_names(resolved),
        "modules_to_save": saved_modules(resolved.recipe),
        "fan_in_fan_out": resolved.recipe.quantization is None
        and any(linear.conv1d for group in resolved.spec.layers for linear in group.linears),
    }
    lines = ["adapters = LoraConfig("]
    lines += [f"    {name}={value!r}," for name, value in arguments.items() if value not in (None, False)]
    lines += [
        ")",
        f"model = get_peft_model(model, adapters, autocast_adapter_dtype={adapter.adapter_dtype == 'float32'})",
    ]
    if adapter.adapter_dtype != "float32":
        lines += [
            "for name, parameter in model.named_parameters():",
            '    if ".lora_" in name:',
            f"        parameter.data = parameter.data.to(torch.{adapter.adapter_dtype})",
        ]
    return lines


def _training(resolved: ResolvedRecipe) -> list[str]:
    recipe = resolved.recipe
    arguments: dict[str, Any] = {
        "output_dir": "out",
        **trainer_entries(recipe),
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": recipe.use_reentrant}
        if recipe.gradient_checkpointing
        else None,
        "bf16": recipe.mixed_precision == "bf16",
        "fp16": recipe.mixed_precision == "fp16",
        "dataloader_drop_last": True,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
    }
    if recipe.loss == "liger":
        arguments |= {"use_liger_kernel": True, "liger_kernel_config": FUSED_LOSS_ALONE}
    return [
        f"LENGTH = {recipe.seq_len}",
        "tokens = AutoTokenizer.from_pretrained(MODEL)(Path(sys.argv[1]).read_text()).input_ids",
        "rows = [tokens[start : start + LENGTH] for start in range(0, len(tokens) - LENGTH + 1, LENGTH)]",
        'examples = [{"input_ids": row, "labels": row} for row in rows]',
        "arguments = TrainingArguments(",
        *[f"    {name}={value!r}," for name, value in arguments.items() if value not in (None, False)],
        "    use_cpu=not torch.cuda.is_available(),",
        "    max_steps=int(sys.argv[2]) if len(sys.argv) > 2 else -1,",
        ")",
        "trainer = Trainer(model, arguments, train_dataset=examples)",
        "trainer.train()",
    ]
