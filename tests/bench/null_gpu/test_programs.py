"""Whole trainings, unchanged, on a null GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.null_gpu.conftest import Run

pytestmark = pytest.mark.cuda_build
GIB = 2**30

MEASURE = """
import resource
import lorabench
from lorabench.bench.measuring.measure import measure
from lorabench.bench.running.jobs import Settings
from lorabench.estimator.recipes.resolved import ResolvedRecipe
spec = lorabench.find_model("meta-llama/Llama-3.1-8B")
recipe = lorabench.make_recipe(spec.name, method=sys.argv[1])
told_of = measure(ResolvedRecipe(spec, recipe), Settings(backend="cuda", steps=1, warmup_steps=1, least_seconds=0))
estimate = lorabench.estimate(spec, method=sys.argv[1], gpu="h200")
tell(measured=told_of.memory.peak_allocated_bytes, estimated=estimate.memory.peak_allocated_bytes,
     host=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, energy=told_of.energy_joules)
"""


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_the_harness_measures_an_8b_model_as_estimated_in_little_of_the_hosts_memory(run_on: Run, method: str) -> None:
    told = run_on("h200", MEASURE, method).values
    assert told["measured"] == pytest.approx(told["estimated"], rel=5e-4)
    assert told["host"] < 4 * GIB
    assert told["energy"] is None


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_trainer_takes_its_steps(run_on: Run, tmp_path: Path, precision: str) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments, default_data_collator
        precision, folder = sys.argv[1:]
        config = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
                             num_key_value_heads=2, vocab_size=1000)
        model = AutoModelForCausalLM.from_config(config)
        row = {"input_ids": list(range(1, 65)), "attention_mask": [1] * 64, "labels": list(range(1, 65))}
        arguments = TrainingArguments(folder, per_device_train_batch_size=2, max_steps=3, report_to=[], logging_steps=1,
                                      save_strategy="no", max_grad_norm=1.0, **{precision: True})
        trainer = Trainer(model, arguments, train_dataset=[row] * 16, data_collator=default_data_collator)
        trainer.train()
        scaler = trainer.accelerator.scaler
        tell(steps=trainer.state.global_step, scale=None if scaler is None else scaler.get_scale(),
             peak=torch.cuda.max_memory_allocated(), weights=4 * model.num_parameters())
        """,
        precision,
        str(tmp_path / "out"),
    )
    assert told.values["steps"] == 3
    assert told.values["scale"] == (65536.0 if precision == "fp16" else None)
    assert told.values["peak"] > 4 * told.values["weights"]
    assert not (told.notes / "noticed").exists()


def test_a_checkpoint_is_loaded_in_none_of_the_hosts_memory(run_on: Run) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        import resource, tempfile
        from transformers import AutoModelForCausalLM, LlamaConfig
        config = LlamaConfig(hidden_size=2048, intermediate_size=8192, num_hidden_layers=8, num_attention_heads=32,
                             num_key_value_heads=8, vocab_size=32000, dtype="bfloat16")
        with tempfile.TemporaryDirectory() as folder:
            with torch.device("meta"):
                shell = AutoModelForCausalLM.from_config(config)
            # A sparse file: a header, then a hole.
            import json, struct, pathlib
            at, header = 0, {"__metadata__": {"format": "pt"}}
            for name, weight in shell.state_dict().items():
                end = at + 2 * weight.numel()
                header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [at, end]}
                at = end
            text = json.dumps(header).encode()
            with open(pathlib.Path(folder) / "model.safetensors", "wb") as file:
                file.write(struct.pack("<Q", len(text)) + text)
                file.truncate(8 + len(text) + at)
            config.save_pretrained(folder)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cuda")
            tell(grown=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, file=at,
                 taken=torch.cuda.memory_allocated(), weights=sum(p.nbytes for p in model.parameters()))
        """,
    ).values
    assert told["file"] > GIB
    assert told["grown"] < 0.2 * told["file"]
    assert told["weights"] <= told["taken"] < 1.02 * told["weights"]
