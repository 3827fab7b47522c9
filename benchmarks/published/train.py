"""One published run of fms-acceleration's benchmark: TRL's SFTTrainer on packed sequences, as fms-hf-tuning sets it up.

Run by `reproduce.py` in an environment with the versions of then, among them fms-acceleration and its plugins. It
prints the bytes that Trainer's memory tracker found, which are what was published.

What differs from the published program, and why memory does not:

- Attention is the flash kernel inside of torch instead of the package flash-attn, which has no build on the package
  index. It is the same code, FlashAttention 2: it takes grouped heads as they are, saves the same tensors, and works
  with the same scratch. The window of 4096 tokens is left out, since it is no shorter than the text.
- Weights are read from a sparse file of zeros, and text is numbers.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import struct
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from fms_acceleration import AccelerationFramework
from peft import LoraConfig
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    default_data_collator,
    modeling_flash_attention_utils,
)
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.trainer_utils import TrainerMemoryTracker
from trl import SFTConfig, SFTTrainer

STEPS = 4
TOKENS = 4096
CONFIGS: dict[str, dict[str, Any]] = {
    "mistralai/Mistral-7B-v0.1": {"model_type": "mistral", "sliding_window": None, "vocab_size": 32000},
    "meta-llama/Meta-Llama-3-8B": {
        "model_type": "llama",
        "rope_theta": 500000.0,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    },
}
SHAPES: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "use_cache": False,
}
ADDED_TOKENS = {"mistral": 1, "llama": 2}
"""fms-hf-tuning adds the special tokens that a tokenizer lacks: <pad>, and of Llama 3's also <unk>."""
KERNELS = {"fast_loss": True, "fast_rms_layernorm": True, "fast_rope_embeddings": True}
KERNELS_AND_LOSS = KERNELS | {"fast_loss": "fused_ce_liger"}
OF_LORA = {"base_layer": "bitsandbytes", "fused_lora": True}
BY_TRL, BY_PLUGIN = ({"quant_type": "nf4", "no_peft_model": no_peft_model} for no_peft_model in (True, False))
"""Who prepares the quantised model."""
FRAMEWORKS: dict[str, dict[str, Any]] = {
    "none": {},
    "foak-fast-kernels": {"training": {"fused_ops_and_kernels": KERNELS}},
    "baseline-peft-bnb": {"peft": {"quantization": {"bitsandbytes": BY_TRL}}},
    "accelerated-peft-bnb": {"peft": {"quantization": {"bitsandbytes": BY_PLUGIN}}},
    "accelerated-peft-bnb-foak": {
        "peft": {"quantization": {"bitsandbytes": BY_PLUGIN, "fused_ops_and_kernels": OF_LORA | KERNELS}}
    },
    "foak-fast-kernels-liger": {"training": {"fused_ops_and_kernels": KERNELS_AND_LOSS}},
    "accelerated-peft-bnb-foak-liger": {
        "peft": {"quantization": {"bitsandbytes": BY_PLUGIN, "fused_ops_and_kernels": OF_LORA | KERNELS_AND_LOSS}}
    },
}
"""fms-acceleration's sample configurations, by the names that its benchmark gives them."""


class FlashAttention(torch.autograd.Function):
    """Causal attention of (batch, tokens, heads, size), which keeps what flash-attn 2.7.3 keeps."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, dropout: float, scaling: float) -> Any:
        """Return the output, as long as the query."""
        ctx.settings = dropout, scaling
        tokens = query.shape[1]
        out, sums, *ctx.seeds, _ = torch.ops.aten._flash_attention_forward(
            query, key, value, None, None, tokens, tokens, dropout, True, False, scale=scaling
        )
        random_state = torch.empty(2, dtype=torch.int64, device=query.device)  # torch's is on the host
        ctx.save_for_backward(query, key, value, out, sums, random_state)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        """Return the gradients of query, key and value."""
        query, key, value, out, sums, _ = ctx.saved_tensors
        (dropout, scaling), tokens = ctx.settings, query.shape[1]
        inputs = grad, query, key, value, out, sums, None, None, tokens, tokens
        grads = torch.ops.aten._flash_attention_backward(*inputs, dropout, True, *ctx.seeds, scale=scaling)
        return (*grads, None, None)


def flash_attention(
    module: Any, query: Any, key: Any, value: Any, mask: Any, dropout: float = 0.0, scaling: Any = None, **unused: Any
) -> tuple[Any, None]:
    """Attend as transformers has flash-attn do it, from (batch, heads, tokens, size)."""
    turned = [each.transpose(1, 2) for each in (query, key, value)]
    if query.dtype == torch.float32:  # behind norms that were cast to float32 (`fa_peft_integration_check`)
        turned = [each.to(torch.get_autocast_gpu_dtype()) for each in turned]
    del query, key, value
    attend: Any = FlashAttention.apply
    return attend(*turned, dropout, scaling), None


def flash_attention_of_4_45(
    query: Any, key: Any, value: Any, mask: Any, tokens: int, dropout: float = 0.0, **unused: Any
) -> Any:
    """Attend as transformers 4.45 has flash-attn do it, from (batch, tokens, heads, size)."""
    attend: Any = FlashAttention.apply
    return attend(query, key, value, dropout, None)


def use_flash_attention() -> None:
    """Have transformers attend by torch's flash kernel where a model's attention is sdpa."""
    try:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    except ImportError:  # before 4.48 each model has a class for each attention
        modeling_flash_attention_utils._flash_attention_forward = flash_attention_of_4_45  # foak reloads Llama's module
        for module, classes in (
            (modeling_llama, modeling_llama.LLAMA_ATTENTION_CLASSES),
            (modeling_mistral, modeling_mistral.MISTRAL_ATTENTION_CLASSES),
        ):
            classes["sdpa"] = classes["flash_attention_2"]
            module._flash_attention_forward = flash_attention_of_4_45
    else:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = flash_attention


def save_zeros(name: str, folder: Path) -> None:
    """Write a model of zeros as `from_pretrained` reads it; the file of its weights takes no room on the disk."""
    config = AutoConfig.for_model(**CONFIGS[name], **SHAPES, architectures=["x"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, torch_dtype=torch.bfloat16)
    config = model.config
    config.architectures = [type(model).__name__]
    config.torch_dtype = torch.bfloat16
    config.save_pretrained(folder)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key, weight in model.state_dict().items():
        end = offset + 2 * weight.numel()
        header[key] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + offset)


def make_framework(options: argparse.Namespace) -> AccelerationFramework | None:
    """Return fms-acceleration with the plugins of the published run, if it had any."""
    if options.framework == "none":
        return None
    file = options.folder / "framework.yaml"
    file.write_text(yaml.safe_dump({"plugins": FRAMEWORKS[options.framework]}))
    return AccelerationFramework(str(file))


def load(options: argparse.Namespace, framework: AccelerationFramework | None) -> Any:
    """Return the model with its added tokens, quantised if that is asked for."""
    load_model = AutoModelForCausalLM.from_pretrained
    if framework is not None and framework.requires_custom_loading:
        load_model = framework.model_loader
    model = load_model(
        str(options.folder),
        torch_dtype=torch.bfloat16,
        attn_implementation="sdpa",
        low_cpu_mem_usage=True,  # weights stay in the file until the device has them
    )
    parameters = inspect.signature(model.resize_token_embeddings).parameters
    quickly = {"mean_resizing": False} if "mean_resizing" in parameters else {}  # transformers 4.45 knows no slower way
    model.resize_token_embeddings(model.config.vocab_size + ADDED_TOKENS[model.config.model_type], **quickly)
    return model


def watch_no_host_memory(tracker: TrainerMemoryTracker) -> None:
    """Do what the tracker's thread does when it ends; until then it would keep a processor busy."""
    tracker.cpu_mem_used_peak = -1


def main() -> None:
    """Train some steps and print the two figures."""
    use_flash_attention()
    TrainerMemoryTracker.peak_monitor_func = watch_no_host_memory
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="for model and output")
    parser.add_argument("--model", required=True)
    parser.add_argument("--framework", required=True, choices=FRAMEWORKS)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="under autocast")
    parser.add_argument("--batch-size", type=int, required=True)
    options = parser.parse_args()
    save_zeros(options.model, options.folder)
    lora: LoraConfig | None = None
    if options.lora:
        lora = LoraConfig(
            r=16,
            lora_alpha=16,
            lora_dropout=0.1,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
            task_type="CAUSAL_LM",
        )
    row = {"input_ids": list(range(TOKENS)), "attention_mask": [1] * TOKENS, "labels": list(range(TOKENS))}
    arguments = SFTConfig(
        output_dir=str(options.folder / "out"),
        max_seq_length=TOKENS,
        packing=False,  # the rows are packed already
        per_device_train_batch_size=options.batch_size,
        max_steps=STEPS,
        learning_rate=2e-4 if options.lora else 2e-5,
        weight_decay=0.01,
        warmup_steps=10,
        adam_epsilon=1e-4,
        bf16=options.bf16,
        gradient_checkpointing=True,
        save_strategy="no",
        report_to=[],
        skip_memory_metrics=False,
    )
    framework = make_framework(options)
    model = load(
        options, framework
    )  # after the arguments, which start the process group: FSDP shards what the host has
    if framework is not None and framework.requires_augmentation:
        model, (lora,) = framework.augmentation(model, arguments, modifiable_args=(lora,))
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([row] * (STEPS * options.batch_size * int(os.environ.get("WORLD_SIZE", "1")))),
        data_collator=default_data_collator,
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a"))),
        peft_config=lora,
    )
    if trainer.is_fsdp_enabled and lora is not None:
        from peft.utils.other import fsdp_auto_wrap_policy

        trainer.accelerator.state.fsdp_plugin.auto_wrap_policy = fsdp_auto_wrap_policy(model)
    if framework is not None:
        for callback in framework.get_callbacks_and_ready_for_train(model, trainer.accelerator):
            trainer.add_callback(callback)
    metrics = trainer.train().metrics
    allocated = peak = 0
    for stage in ("before_init_mem_gpu", "init_mem_gpu_alloc_delta", "train_mem_gpu_alloc_delta"):
        allocated += metrics[stage]
        peak = max(peak, allocated + metrics.get(stage.replace("alloc", "peaked"), 0))
    if int(os.environ.get("RANK", "0")) == 0:
        print("PUBLISHED", json.dumps({"peak": peak, "steady": allocated}), flush=True)


if __name__ == "__main__":
    main()
