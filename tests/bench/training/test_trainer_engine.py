"""transformers' Trainer trains what lorabench trains: the same losses and gradient norms, step by step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from lorabench.bench.measuring.measure import measure
from lorabench.bench.records.run_settings import Settings
from lorabench.bench.training.batches import Batches
from lorabench.bench.training.steps import Training
from lorabench.bench.training.trainer_engine import trainer_steps
from lorabench.estimator.errors import UserError
from lorabench.estimator.recipes.recipe import Recipe, make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.training.model import build_model
from lorabench.estimator.training.optimizer import make_optimizer
from lorabench.estimator.training.step import TrainingStep
from tests.small_models import TINY, small_model

STEPS = 4
SPEC = small_model("llama", **TINY)


def recipe_of(**options: Any) -> Recipe:
    plain = {"dtype": "float32", "mixed_precision": "no", "gradient_checkpointing": False, "lora_dropout": 0.1}
    if options.get("method") == "full":
        del plain["lora_dropout"]
    return make_recipe("small/llama", **{"seq_len": 32, "batch_size": 2, **plain, **options})


def training_of(recipe: Recipe, seed: int = 7, *, spec: Any = SPEC) -> Training:
    generator = torch.Generator().manual_seed(1)
    blocks = [
        torch.randint(spec.vocab_size, (recipe.batch_size, recipe.seq_len), generator=generator)
        for _ in range(STEPS * recipe.gradient_accumulation)
    ]
    model = build_model(ResolvedRecipe(spec, recipe), "cpu", seed)
    step = TrainingStep(model, make_optimizer(model, recipe), recipe)
    torch.manual_seed(seed)
    return Training(step, Batches([], blocks, recipe.gradient_accumulation, "cpu"), STEPS)


def trained(recipe: Recipe, engine: Callable[[Training], Any], *, steps: int = STEPS, spec: Any = SPEC) -> Training:
    training = training_of(recipe, spec=spec)
    with engine(training) as take_step:
        for _ in range(steps):
            take_step()
    return training


def by_trainer(training: Training) -> Any:
    return trainer_steps(training, seed=7)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "full"},
        {"method": "full", "optim": "adamw_8bit", "gradient_accumulation": 2},
        {"method": "lora", "rank": 4},
        {"method": "lora", "rank": 4, "gradient_accumulation": 3, "gradient_checkpointing": True},
        {"method": "lora", "rank": 4, "gradient_accumulation": 2, "loss": "legacy"},
        {"method": "lora", "rank": 4, "mixed_precision": "bf16", "dtype": "bfloat16"},
        {"method": "qlora", "rank": 4, "gradient_checkpointing": True},
        {"method": "qlora", "rank": 4, "prepare_kbit": False, "optim": "sgd"},
        {"method": "full", "optim": "adafactor"},
        {"method": "lora", "rank": 4, "optim": "schedule_free_sgd"},
    ],
    ids=lambda options: " ".join(str(value) for value in options.values()),
)
def test_trainer_gives_the_same_losses_and_gradient_norms(options: dict[str, Any]) -> None:
    recipe = recipe_of(**options)
    own, trainers = trained(recipe, nullcontext), trained(recipe, by_trainer)
    assert len(own.losses()) == STEPS
    assert trainers.losses() == pytest.approx(own.losses(), rel=2e-5)
    assert trainers.gradient_norms() == pytest.approx(own.gradient_norms(), rel=2e-4)
    weights = dict(own.step.model.named_parameters())
    for name, weight in trainers.step.model.named_parameters():
        assert torch.allclose(weight, weights[name], rtol=1e-3, atol=1e-5), name


def test_gradients_were_clipped() -> None:
    """So that the test above also compares clipping."""
    assert max(norm or 0.0 for norm in trained(recipe_of(method="full"), nullcontext).gradient_norms()) > 1.0


@pytest.mark.parametrize("engine", [nullcontext, by_trainer])
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "schedule_free_sgd"])
def test_learning_ends_at_the_same_step_and_the_text_starts_over(engine: Callable[[Training], Any], optim: str) -> None:
    recipe = recipe_of(method="lora", rank=4, optim=optim)
    training = trained(recipe, engine, steps=STEPS + 3)
    assert (training.done, len(training.losses())) == (STEPS + 3, STEPS)
    learnt = dict(trained(recipe, nullcontext).step.model.named_parameters())
    for name, weight in training.step.model.named_parameters():
        assert torch.allclose(weight, learnt[name], rtol=1e-3, atol=1e-6), name


def test_own_steps_go_on_where_trainer_stopped() -> None:
    recipe = recipe_of(method="lora", rank=4, mixed_precision="bf16")
    model_type = type(training_of(recipe).step.model)
    training = trained(recipe, by_trainer, steps=2)
    assert "forward" not in vars(training.step.model)  # what accelerate wraps is unwrapped
    assert type(training.step.model) is model_type
    states = training.step.optimizer.state
    assert all(state["step"] == 2 for state in states.values())
    training()
    assert all(state["step"] == 3 for state in states.values())
    own = trained(recipe, nullcontext, steps=2)
    assert training.losses()[:2] == pytest.approx(own.losses(), rel=2e-5)


def test_a_run_is_measured_alike_whoever_trains() -> None:
    recipe = recipe_of(method="lora", rank=4)
    settings = Settings(backend="cpu", steps=3, warmup_steps=1, least_seconds=0.0)
    own = measure(ResolvedRecipe(SPEC, recipe), settings)
    trainers = measure(ResolvedRecipe(SPEC, recipe), replace(settings, engine="trainer"))
    assert trainers.losses == pytest.approx(own.losses, rel=2e-5)
    assert trainers.held_out_loss_after == pytest.approx(own.held_out_loss_after, rel=2e-5)
    assert len(trainers.step_seconds) == len(own.step_seconds) == 3
    assert trainers.memory.components == own.memory.components


def test_what_trainer_raises_reaches_the_caller_and_no_thread_is_left() -> None:
    training = training_of(recipe_of(method="lora", rank=4))
    with trainer_steps(training, seed=7) as take_step:
        take_step()
        training.step.model.forward = None  # type: ignore[assignment]
        with pytest.raises(TypeError):
            take_step()
    assert "trainer" not in {thread.name for thread in threading.enumerate()}


def test_leaving_without_a_step_is_fine() -> None:
    training = training_of(recipe_of(method="lora", rank=4))
    with trainer_steps(training, seed=7):
        pass
    assert training.done == 0


def test_trainer_keeps_no_outputs() -> None:
    training = training_of(recipe_of(method="lora", rank=4, keep_outputs=True))
    with pytest.raises(UserError, match="leave keep_outputs out, or use engine lorabench"), trainer_steps(training, 7):
        pass


def test_trainer_empties_the_cache_where_lorabench_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between forward and backward, in each micro-batch of every second step; and own steps go on counting."""
    seen: list[str] = []
    monkeypatch.setattr("transformers.trainer.clear_device_cache", lambda: seen.append("emptied"))
    training = training_of(recipe_of(method="lora", rank=4, gradient_accumulation=2))
    step = training.step
    step.recipe = replace(step.recipe, empty_cache_steps=2)
    step._empty_cache = lambda: seen.append("emptied")
    step.model.register_forward_hook(lambda module, arguments, outputs: seen.append("forward"))
    weight: Any = next(each for each in step.model.parameters() if each.requires_grad)
    weight.register_hook(lambda _: seen.append("backward"))
    with by_trainer(training) as take_step:
        for _ in range(3):
            take_step()
    training()
    training()
    plain, emptying = ["forward", "backward"] * 2, ["forward", "emptied", "backward"] * 2
    assert seen == emptying + plain + emptying + plain + emptying


def test_fp16_autocast_on_a_cpu_is_refused_with_a_way_out() -> None:
    training = training_of(recipe_of(method="lora", rank=4, mixed_precision="fp16"))
    with pytest.raises(UserError, match="use bf16, no, or engine lorabench"), trainer_steps(training, seed=7):
        pass
