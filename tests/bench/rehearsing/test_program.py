"""Unchanged programs on a null GPU: what they take, where, and how they end. They need a CUDA build of torch."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
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
from pathlib import Path
from transformers import Trainer, TrainingArguments
out = str(Path(__file__).with_name("out"))
rows = [{"input_ids": list(range(64)), "labels": list(range(64))} for _ in range(64)]
arguments = TrainingArguments(
    output_dir=out, max_steps=50, per_device_train_batch_size=2, report_to="none", save_strategy="no", bf16=True
)
Trainer(model=model, args=arguments, train_dataset=rows).train()
raise SystemExit("the rehearsal should have ended the program")
"""


@pytest.fixture
def rehearse(tmp_path: Path) -> Any:
    def run(
        program: str, gpu: str = "a100-sxm-80gb", launcher: Sequence[str] = ("python",), **settings: Any
    ) -> ProgramRehearsal:
        script = tmp_path / "train.py"
        script.write_text(MODEL + textwrap.dedent(program))
        notes = tmp_path / "notes"
        notes.mkdir()
        return rehearse_program([*launcher, str(script)], find_device(gpu), notes, **settings)

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


def test_a_model_of_which_there_is_only_a_config_is_loaded_as_if_there_were_its_weights(rehearse: Any) -> None:
    rehearsal = rehearse(
        """
        import tempfile
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cuda")
        assert model.config.name_or_path == model.name_or_path == folder
        assert all(weight.device.type == "cuda" for weight in model.parameters())
        """,
        random_weights=True,
    )
    [process] = rehearsal.processes
    parameters = 2 * 1024 * 256 + 2 * (4 * 256 * 256 + 3 * 256 * 512 + 2 * 256) + 256
    assert rehearsal.outcome == "ok"
    assert 2 * parameters <= process.gpus[0].peak_requested_bytes <= 2 * parameters + 4096


LAUNCHED = """
import os
import torch.distributed as dist
dist.init_process_group("nccl")
local = int(os.environ["LOCAL_RANK"])
torch.cuda.set_device(local)
model = torch.nn.parallel.DistributedDataParallel(model.to(local), device_ids=[local])
optimizer = torch.optim.SGD(model.parameters())
for step in range(50):
    ids = torch.randint(0, 1024, (1, 128), device=local)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("launcher", "ranks", "expected"),
    [
        (["torchrun", "--nproc-per-node", "2"], {}, [0, 1]),
        (["torchrun", "--nnodes", "2", "--nproc-per-node", "2"], {"rank": 3, "ranks": 4}, [3]),
        (["accelerate", "launch", "--num_processes", "2"], {"rank": 0, "ranks": 2}, [0]),
    ],
)
def test_launchers_start_all_ranks_or_one_alone(
    rehearse: Any, launcher: list[str], ranks: dict[str, int], expected: list[int]
) -> None:
    rehearsal = rehearse(LAUNCHED, launcher=launcher, gpus=2, **ranks)
    assert (rehearsal.outcome, rehearsal.exit_code) == ("ok", 0)
    assert sorted(process.rank for process in rehearsal.processes) == expected
    assert [process.steps for process in rehearsal.processes] == [2] * len(expected)
    assert sorted(gpu.index for process in rehearsal.processes for gpu in process.gpus) == [
        rank % 2 for rank in expected
    ]


def test_a_launcher_of_other_ranks_than_were_said_is_refused(rehearse: Any, capfd: pytest.CaptureFixture[str]) -> None:
    launcher = ["torchrun", "--nproc-per-node", "4"]
    assert rehearse(LAUNCHED, launcher=launcher, gpus=8, rank=0, ranks=8).outcome == "failed"
    assert "starts 4 ranks, 4 on each of 1 nodes, and the rehearsal is of one rank of 8" in capfd.readouterr().err


def test_the_shards_of_a_rank_are_told_apart_by_what_they_are(rehearse: Any) -> None:
    rehearsal = rehearse(
        """
        import torch.distributed as dist
        from torch.distributed.fsdp import fully_shard
        dist.init_process_group("nccl")
        model.cuda()
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        optimizer = torch.optim.AdamW(model.parameters())
        for step in range(50):
            ids = torch.randint(0, 1024, (1, 128), device="cuda")
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        """,
        gpus=4,
        rank=1,
        ranks=4,
    )
    [process] = rehearsal.processes
    assert (rehearsal.outcome, process.steps) == ("ok", 2)
    projection = 4 * 256 * 512 // 4  # bytes: a quarter of the floats
    kinds = {(tensors.kind, tensors.place): tensors for tensors in process.gpus[0].peak.alive}
    gate = "model.layers.*.mlp.gate_proj.weight"
    assert (kinds["weights", gate].count, kinds["weights", gate].bytes) == (2, 2 * projection)
    assert (kinds["optimizer states", gate].count, kinds["optimizer states", gate].bytes) == (4, 4 * projection)


def test_what_is_compiled_is_one_graph_as_without_a_rehearsal(rehearse: Any) -> None:
    rehearsal = rehearse(
        """
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 64)).cuda()
        compiled = torch.compile(model)
        optimizer = torch.optim.SGD(model.parameters())
        for step in range(50):
            if step == 1:
                from torch._dynamo.utils import counters
                assert counters["stats"]["unique_graphs"] == 1, counters
                assert not counters["graph_break"], counters
            compiled(torch.randn(16, 64, device="cuda")).sum().backward()
            optimizer.step()
        """,
        launches=True,
    )
    assert (rehearsal.outcome, rehearsal.processes[0].steps) == ("ok", 2)
    assert any("gelu" in kernel for kernel in rehearsal.launches if kernel.startswith("triton_"))
