"""Unchanged programs on a null GPU: what they take, where, and how they end. They need a CUDA build of torch."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from lorabench.bench.rehearsing.program import ProgramRehearsal, rehearse_program
from lorabench.estimator.devices.device import find_device
from lorabench.estimator.errors import UserError

pytestmark = pytest.mark.cuda_build

MODEL = """
from transformers import AutoConfig, AutoModelForCausalLM
import torch
config = AutoConfig.for_model(
    "llama", hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, vocab_size=1024
)
model = AutoModelForCausalLM.from_config(config)
"""
PLAIN = """
model.to("cuda")
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
for step in range(STEPS):
    ids = torch.randint(0, 1024, (1, 128)).cuda()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print("done")
"""
TRAINER = """
from transformers import Trainer, TrainingArguments
rows = [{"input_ids": list(range(64)), "labels": list(range(64))} for _ in range(64)]
arguments = TrainingArguments(
    output_dir="out", max_steps=50, per_device_train_batch_size=2, report_to="none", save_strategy="no", bf16=True
)
Trainer(model=model, args=arguments, train_dataset=rows).train()
raise SystemExit("the rehearsal should have ended the program")
"""


@pytest.fixture
def rehearse(tmp_path: Path) -> Any:
    def run(program: str, gpu: str = "a100-sxm-80gb", **settings: Any) -> ProgramRehearsal:
        script = tmp_path / "train.py"
        script.write_text(MODEL + textwrap.dedent(program))
        notes = tmp_path / "notes"
        notes.mkdir()
        return rehearse_program(["python", str(script)], find_device(gpu), notes, **settings)

    return run


def test_a_plain_loop_is_stopped_after_the_steps_and_holds_sixteen_bytes_a_parameter(rehearse: Any) -> None:
    rehearsal = rehearse(PLAIN.replace("STEPS", "50"), steps=3)
    [process] = rehearsal.processes
    [gpu] = process.gpus
    assert (rehearsal.outcome, process.steps, process.stopped, process.trainer) == ("ok", 3, True, False)
    # Embedding and head; for each layer four projections of attention, three of the MLP, two norms; the last norm.
    parameters = 2 * 1024 * 256 + 2 * (4 * 256 * 256 + 3 * 256 * 512 + 2 * 256) + 256
    assert gpu.peak_requested_bytes >= 16 * parameters
    assert gpu.peak_requested_bytes <= gpu.peak_allocated_bytes <= gpu.peak_reserved_bytes
    kinds: dict[str, int] = {}
    for tensors in gpu.peak.alive:
        kinds[tensors.kind] = kinds.get(tensors.kind, 0) + tensors.bytes
    assert kinds["weights"] <= 4 * parameters + 10_000
    assert kinds["optimizer states"] <= 8 * parameters + 10_000


def test_transformers_trainer_is_stopped_through_its_callback(rehearse: Any) -> None:
    rehearsal = rehearse(TRAINER, steps=2)
    [process] = rehearsal.processes
    assert (rehearsal.outcome, process.steps, process.stopped, process.trainer) == ("ok", 2, True, True)
    assert rehearsal.exit_code == 0


def test_a_program_that_runs_out_of_memory_says_where(rehearse: Any) -> None:
    rehearsal = rehearse(
        """
        taken = torch.empty(14 * 2**30, dtype=torch.uint8, device="cuda")
        more = taken.clone()
        """,
        gpu="t4",
    )
    [process] = rehearsal.processes
    assert rehearsal.outcome == "out of memory"
    assert process.out_of_memory is not None
    assert process.out_of_memory.requested_bytes == 14 * 2**30
    assert "train.py" in process.out_of_memory.stack[0]


def test_a_program_that_uses_no_gpu_or_fails_rehearses_nothing(rehearse: Any, tmp_path: Path) -> None:
    assert rehearse("print('hello')").outcome == "no GPU used"
    (tmp_path / "notes").rename(tmp_path / "before")
    failed = rehearse("model.to('cuda')\nraise ValueError('no')")
    assert (failed.outcome, failed.exit_code) == ("failed", 1)


def test_a_program_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no-such-program: no such program: write the command after --"):
        rehearse_program(["no-such-program"], find_device("t4"), tmp_path)
