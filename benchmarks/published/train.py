"""One published run of fms-acceleration's benchmark: TRL's SFTTrainer on packed sequences, as fms-hf-tuning sets it up.

Run by `reproduce.py` in an environment with the versions of then. It prints the bytes that Trainer's memory tracker
found, which are what was published.

What differs from the published program, and why memory does not:

- Attention is the flash kernel inside of torch instead of the package flash-attn, which has no build on the package
  index. It is the same code, FlashAttention 2: it takes grouped heads as they are, saves the same tensors, and works
  with the same scratch. The window of 4096 tokens is left out, since it is no shorter than the text.
- Weights are read from a sparse file of zeros, and text is numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedTokenizerFast,
    default_data_collator,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
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


def load(options: argparse.Namespace) -> Any:
    """Return the model with its added tokens, quantised if that is asked for."""
    kwargs: dict[str, Any] = {}
    if options.method == "qlora":
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            **({"bnb_4bit_quant_storage": torch.bfloat16} if "ACCELERATE_USE_FSDP" in os.environ else {}),
        )
    model = AutoModelForCausalLM.from_pretrained(
        options.folder,
        torch_dtype=torch.bfloat16,
        attn_implementation="sdpa",
        low_cpu_mem_usage=True,  # weights stay in the file until the device has them
        **kwargs,
    )
    model.resize_token_embeddings(model.config.vocab_size + ADDED_TOKENS[model.config.model_type], mean_resizing=False)
    return model


def prepare_without_casting(model: Any) -> None:
    """Prepare a quantised model as fms-acceleration's plugin does: what is not quantised stays in bfloat16."""
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()


def watch_no_host_memory(tracker: TrainerMemoryTracker) -> None:
    """Do what the tracker's thread does when it ends; until then it would keep a processor busy."""
    tracker.cpu_mem_used_peak = -1


def main() -> None:
    """Train some steps and print the two figures."""
    ALL_ATTENTION_FUNCTIONS["sdpa"] = flash_attention
    TrainerMemoryTracker.peak_monitor_func = watch_no_host_memory
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="for model and output")
    parser.add_argument("--model", required=True)
    parser.add_argument("--method", required=True, choices=["full", "lora", "qlora"])
    parser.add_argument("--prepare", choices=["no", "recast"], default="no")
    parser.add_argument("--batch-size", type=int, required=True)
    options = parser.parse_args()
    save_zeros(options.model, options.folder)
    model = load(options)
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
        learning_rate=2e-5 if options.method == "full" else 2e-4,
        weight_decay=0.01,
        warmup_steps=10,
        adam_epsilon=1e-4,
        bf16=options.method == "qlora",
        gradient_checkpointing=True,
        save_strategy="no",
        report_to=[],
        skip_memory_metrics=False,
    )
    if options.method == "qlora" and options.prepare == "no":
        prepare_without_casting(model)
        model = get_peft_model(model, lora)
        lora = None
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([row] * (STEPS * options.batch_size * int(os.environ.get("WORLD_SIZE", "1")))),
        data_collator=default_data_collator,
        processing_class=PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a"))),
        peft_config=None if options.method == "full" else lora,
    )
    if trainer.is_fsdp_enabled and options.method != "full":
        from peft.utils.other import fsdp_auto_wrap_policy

        trainer.accelerator.state.fsdp_plugin.auto_wrap_policy = fsdp_auto_wrap_policy(trainer.model)
    metrics = trainer.train().metrics
    allocated = peak = 0
    for stage in ("before_init_mem_gpu", "init_mem_gpu_alloc_delta", "train_mem_gpu_alloc_delta"):
        allocated += metrics[stage]
        peak = max(peak, allocated + metrics.get(stage.replace("alloc", "peaked"), 0))
    if int(os.environ.get("RANK", "0")) == 0:
        print("PUBLISHED", json.dumps({"peak": peak, "steady": allocated}), flush=True)


if __name__ == "__main__":
    main()
