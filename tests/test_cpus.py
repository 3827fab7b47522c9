"""The same on every CPU: the libraries are made to believe that they run on another.

bitsandbytes rearranges 4-bit weights in place when they are evaluated on a CPU with AVX512-BF16; such a layer cannot
train on. The rearrangement itself is ordinary torch code, so that it would happen on any CPU that is taken for one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from msgspec.structs import replace

from lorabench.bench.records.measurement import Measurement
from lorabench.bench.records.record import read_records
from lorabench.bench.records.run_settings import Settings
from lorabench.bench.running.jobs import Job
from lorabench.bench.running.worker import answer_job
from lorabench.bench.training.steps import mean_loss
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.recipe import Recipe, make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.trace.trace import trace
from lorabench.estimator.training.model import build_model
from lorabench.estimator.training.optimizer import make_optimizer
from lorabench.estimator.training.step import TrainingStep
from tests.planted import planted
from tests.saved_models import save_with_tokenizer
from tests.small_models import TINY, small_config

pytestmark = pytest.mark.filterwarnings("ignore")

FAMILIES = ("llama", "gpt2")  # GPT-2's layers have biases, and other weights are turned around when they are quantised


@pytest.fixture(params=[False, True], ids=["without AVX512-BF16", "with AVX512-BF16"])
def pretended(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, avx512_bf16=request.param)


def pretend(monkeypatch: pytest.MonkeyPatch, *, avx512_bf16: bool) -> None:
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: avx512_bf16)


def spec_of(family: str) -> ModelSpec:
    return read_config(small_config(family, **TINY), f"test/{family}")


def recipe_of(family: str, **options: Any) -> Recipe:
    return make_recipe(f"test/{family}", **{"method": "qlora", "batch_size": 2, "seq_len": 16, **options})


def step_of(family: str, recipe: Recipe, weights: str | None) -> TrainingStep:
    model = build_model(ResolvedRecipe(spec_of(family), recipe), "cpu", seed=3, weights=weights)
    return TrainingStep(model, make_optimizer(model, recipe), recipe)


def batch() -> dict[str, torch.Tensor]:
    tokens = torch.arange(32).reshape(2, 16)
    return {"input_ids": tokens, "labels": tokens.clone()}


def losses_of_training(step: TrainingStep) -> list[float]:
    torch.manual_seed(0)
    return [step([batch()]).item() for _ in range(3)]


def quantized_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Codes and constants of every 4-bit weight, copied."""
    found: dict[str, torch.Tensor] = {}
    for name, weight in model.named_parameters():
        state = getattr(weight, "quant_state", None)
        if state is not None:
            found |= {f"{name} {part}": tensor.clone() for part, tensor in state.as_dict(packed=True).items()}
            found[name] = weight.detach().clone()
    return found


@pytest.mark.parametrize(
    ("family", "source", "double_quant"),
    [("llama", "random", True), ("gpt2", "random", False), ("llama", "folder", False), ("gpt2", "folder", True)],
)
@pytest.mark.usefixtures("pretended")
def test_training_goes_on_after_an_evaluation_as_if_there_had_been_none(
    family: str, source: str, double_quant: bool, tmp_path: Path
) -> None:
    weights = None
    if source == "folder":
        weights = str(tmp_path)
        save_with_tokenizer(small_config(family, **TINY), tmp_path)
    recipe = recipe_of(family, double_quant=double_quant)
    unevaluated, evaluated = (step_of(family, recipe, weights) for _ in range(2))
    before = quantized_tensors(evaluated.model)
    assert before
    losses = [mean_loss(evaluated, [batch()]) for _ in range(2)]
    after = quantized_tensors(evaluated.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert losses[0] == losses[1]
    assert losses_of_training(evaluated) == losses_of_training(unevaluated)
    assert mean_loss(evaluated, [batch()]) == mean_loss(unevaluated, [batch()]) != losses[0]


def measured(job: Job) -> Measurement:
    answer = answer_job(job)
    assert (answer.outcome, answer.message) == ("ok", None)
    assert answer.measurement is not None
    return answer.measurement


@pytest.mark.parametrize("engine", ["lorabench", "trainer"])
@pytest.mark.parametrize(("family", "source"), [("llama", "random"), ("gpt2", "folder")])
def test_a_run_measures_the_same_losses_and_memory(
    engine: Any, family: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(backend="cpu", steps=2, warmup_steps=1, least_seconds=0.0, engine=engine)
    spec = spec_of(family)
    if source == "folder":
        spec = save_with_tokenizer(small_config(family, **TINY), tmp_path)
        settings = replace(settings, weights=str(tmp_path))
    job = Job(resolved=ResolvedRecipe(spec, recipe_of(family)), settings=settings)
    told = []
    for avx512_bf16 in (False, True):
        pretend(monkeypatch, avx512_bf16=avx512_bf16)
        told.append(measured(job))
    one, other = told
    assert one.losses == other.losses
    assert one.gradient_norms == other.gradient_norms
    assert one.held_out_loss_before == other.held_out_loss_before
    assert one.held_out_loss_after == other.held_out_loss_after
    assert one.base_loss == one.adapted_loss == other.base_loss == other.adapted_loss
    assert one.memory == other.memory
    assert one.evaluation_peak_bytes == other.evaluation_peak_bytes


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["cuda", "cpu"])
def test_a_trace_tells_the_same(family: str, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for avx512_bf16 in (False, True):
        pretend(monkeypatch, avx512_bf16=avx512_bf16)
        told.append(trace(ResolvedRecipe(spec_of(family), recipe_of(family)), backend=backend))
    assert told[0] == told[1]


PRETENDING = """
def imported(functional):
    functional.has_avx512bf16 = lambda: True
"""


def test_no_process_fetches_code_from_the_hub(tmp_path: Path) -> None:
    """On such a CPU, bitsandbytes imports the package kernels, if it is installed, to fetch and run compiled code."""
    run = planted(tmp_path / "planted", "bitsandbytes.functional", PRETENDING)
    fetched = tmp_path / "fetched"
    (tmp_path / "planted" / "kernels").mkdir()
    package = f"open({str(fetched)!r}, 'w').close()\ndef get_kernel(*_, **__): raise OSError\n"
    (tmp_path / "planted" / "kernels" / "__init__.py").write_text(package)
    config = tmp_path / "config.json"
    config.write_bytes(msgspec.json.encode(small_config("llama", **TINY)))

    def ends_well(*program: str) -> None:
        ran = run(*program)
        assert (ran.returncode, ran.stderr) == (0, "")

    run("-c", "import bitsandbytes")
    assert fetched.exists()  # so that the rest could fail
    fetched.unlink()
    options = ("--method", "qlora", "--seq-len", "16")
    ends_well("-m", "lorabench", "trace", str(config), *options)
    ends_well("-m", "lorabench", "doctor", "--device", "cpu")
    out = tmp_path / "out"
    ends_well("-m", "lorabench", "run", str(config), *options, "--steps", "1", "-o", str(out), "--device", "cpu")
    assert [record.outcome for record in read_records(out)] == ["ok"]
    assert not fetched.exists()
