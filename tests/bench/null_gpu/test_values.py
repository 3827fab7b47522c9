"""Small tensors hold what a GPU would compute; what follows from weights is guessed, and said to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.null_gpu.conftest import Run, Told

pytestmark = pytest.mark.cuda_build


def noticed(told: Told) -> list[tuple[str, str]]:
    path = told.notes / "noticed"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(each["kind"], each["where"].rpartition("/")[2]) for each in map(json.loads, lines)]


def test_integers_and_booleans_are_as_on_a_gpu(run_on: Run) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        counting = torch.arange(10, device="cuda")
        mask = torch.tensor([1, 0, 1, 1, 0], device="cuda", dtype=torch.bool)
        changed = torch.zeros(6, dtype=torch.long, device="cuda")
        changed[torch.tensor([0, 2, 4], device="cuda")] = 7
        changed[1:3] = 3
        tell(
            sum=counting.sum().item(), even=(counting % 2 == 0).tolist(), large=counting[counting > 5].tolist(),
            where=mask.nonzero().flatten().tolist(), all=bool(mask.all()), any=bool(mask.any()),
            changed=changed.tolist(), unique=torch.tensor([3, 1, 2, 3], device="cuda").unique().tolist(),
            counted=torch.bincount(torch.tensor([0, 1, 1, 5], device="cuda")).tolist(),
            one_hot=torch.nn.functional.one_hot(torch.tensor([0, 2], device="cuda")).tolist(),
            permutation=sorted(torch.randperm(5, device="cuda").tolist()), floats=(counting[:3].float() / 2).tolist(),
            print=str(counting[:2]),
        )
        """,
    )
    assert told.values == {
        "sum": 45,
        "even": [True, False] * 5,
        "large": [6, 7, 8, 9],
        "where": [0, 2, 3],
        "all": False,
        "any": True,
        "changed": [7, 3, 3, 0, 7, 0],
        "unique": [1, 2, 3],
        "counted": [1, 2, 0, 0, 0, 1],
        "one_hot": [[1, 0, 0], [0, 0, 1]],
        "permutation": [0, 1, 2, 3, 4],
        "floats": [0.0, 0.5, 1.0],
        "print": "tensor([0, 1], device='cuda:0')",
    }
    assert noticed(told) == []


def test_shapes_that_depend_on_masks_are_right_of_large_floats_too(run_on: Run) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        logits = torch.empty(4096, 32000, device="cuda", dtype=torch.bfloat16)
        labels = torch.full((4096,), -100, device="cuda")
        labels[1000:1010] = 5
        before = torch.cuda.memory_allocated()
        kept = logits[labels != -100]
        tell(shape=list(kept.shape), taken=torch.cuda.memory_allocated() - before)
        tell(selected=logits[0].masked_select(torch.arange(32000, device="cuda") < 12).numel())
        logits[labels == 5] = 0
        kept = torch.ones(10, device="cuda", requires_grad=True)
        torch.zeros(4096, device="cuda").masked_scatter(labels == 5, kept).sum().backward()
        """,
    )
    assert told.values == {"shape": [10, 32000], "taken": 10 * 32000 * 2, "selected": 12}
    assert noticed(told) == []


def test_losses_are_finite_and_a_branch_on_them_is_noted(run_on: Run) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        activations = torch.randn(4096, 4096, device="cuda")
        loss = activations.mean()
        tell(finite=bool(torch.isfinite(loss)), nan=bool(torch.isnan(loss).any()), value=loss.item())
        if loss < 0.5:
            pass
        """,
    )
    assert told.values == {"finite": True, "nan": False, "value": 1.0}
    assert noticed(told) == [("read", "program.py:10 in <module>"), ("branch", "program.py:11 in <module>")]


def test_a_float_that_the_program_reads_is_noted_if_a_gpu_would_have_computed_it(run_on: Run) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        loss = torch.randn(4096, 4096, device="cuda").mean()
        scale = torch.tensor(2.0, device="cuda")
        best = 3.0
        for step in range(2):
            if loss.item() < best:
                best = float(loss)
        if scale.item() > 1:
            print(loss)
        tell(best=best)
        """,
    )
    assert noticed(told) == [("read", "program.py:12 in <module>"), ("read", "program.py:13 in <module>")]


def test_a_float_that_code_without_a_file_reads_is_noted_if_the_code_belongs_to_the_program(run_on: Run) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        import click
        loss = torch.randn(4096, 4096, device="cuda").mean()
        made = "def log(loss): return loss.item()"
        exec(made, vars(click))
        exec(made, globals())
        tell(library=click.log(loss), own=log(loss))
        """,
    )
    assert told.values == {"library": 1.0, "own": 1.0}
    assert noticed(told) == [("read", "program.py, <string>:1 in log")]


def test_the_programs_own_random_numbers_are_as_without_a_null_gpu(run_on: Run) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        torch.manual_seed(0)
        torch.randn(10, device="cuda")
        torch.randint(0, 100, (10,), device="cuda")
        tell(drawn=torch.randint(0, 10**6, (3,)).tolist())
        """,
    )
    import torch

    torch.manual_seed(0)
    assert told.values["drawn"] == torch.randint(0, 10**6, (3,)).tolist()


def test_experts_get_the_same_number_of_tokens_each(run_on: Run) -> None:
    told = run_on(
        "h100-sxm",
        """
        from transformers import MixtralConfig, MixtralForCausalLM
        config = MixtralConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4,
                               num_key_value_heads=2, vocab_size=1000, num_local_experts=8, num_experts_per_tok=2)
        with torch.device("cuda"):
            model = MixtralForCausalLM(config).bfloat16()
        seen = []
        from torch.utils._python_dispatch import TorchDispatchMode
        class Chosen(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                out = func(*args, **(kwargs or {}))
                if func is torch.ops.aten.topk.default:
                    seen.append(out[1])
                return out
        ids = torch.arange(512, device="cuda")[None]
        with Chosen():
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        tell(tokens=torch.bincount(seen[0].flatten(), minlength=8).tolist())
        """,
    )
    assert told.values["tokens"] == [512 * 2 // 8] * 8
    assert {kind for kind, _ in noticed(told)} == {"balanced"}


def test_threads_see_real_values(run_on: Run) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(1) as pool:
            tell(sum=pool.submit(lambda: torch.arange(5, device="cuda").sum().item()).result())
        """,
    )
    assert told.values == {"sum": 10}


def test_a_sitecustomize_of_the_users_runs_too(run_on: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "users"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys\nsys.users_own = True\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    told = run_on("a100-sxm-80gb", 'tell(ran=sys.users_own, sum=torch.arange(3, device="cuda").sum().item())')
    assert told.values == {"ran": True, "sum": 3}
