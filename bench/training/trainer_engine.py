"""The same training through transformers' Trainer: its loop, data loader, optimizer, clipping, autocast and callbacks.

Trainer runs a whole training, but meters need single steps. Trainer therefore runs in its own thread, which waits after
each step until the next is requested. The two threads never work at the same time.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lorabench.bench.training.batches import IGNORED, Batches
from lorabench.bench.training.steps import Training
from lorabench.estimator.errors import UserError
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.training.optimizer import LEARNING_RATE, forget_overrides, stop_learning
from lorabench.estimator.training.step import MAX_GRAD_NORM

if TYPE_CHECKING:
    import torch
    from torch import nn

MOST_STEPS = 10**6
"""Trainer needs a maximum number of steps; it is stopped when no more are requested."""


@contextmanager
def trainer_steps(training: Training, seed: int) -> Iterator[Callable[[], None]]:
    """Return a function that makes Trainer train the next step of ``training``, until the context ends.

    Trainer makes the optimizer, which replaces that of ``training``. Trainer's settings are the defaults, except for
    the recipe's settings, lorabench's constant learning rate, and rows in order instead of shuffled. Dropout is seeded
    as in lorabench's own loop, with ``seed`` just before the first step.

    Raises:
        UserError: Trainer cannot train the recipe on this device.
    """
    refuse_impossible(training.step.recipe, training.step.device_type)
    with _own_forward(training.step.model), tempfile.TemporaryDirectory(prefix="lorabench-") as folder:
        thread = _TrainerThread(training, seed, folder)
        try:
            yield thread.take_step
        finally:
            thread.stop()
            if training.step.device_type == "cuda":
                # Each thread that ran a matmul keeps a workspace. This thread is gone; its workspace would still count.
                import torch

                torch._C._cuda_clearCublasWorkspaces()


def refuse_impossible(recipe: Recipe, device: str) -> None:
    """Refuse what Trainer does not support.

    Raises:
        UserError: the recipe has fp16 autocast on a CPU, which accelerate refuses, or keeps outputs.
    """
    if recipe.mixed_precision == "fp16" and device == "cpu":
        raise UserError("engine trainer has no mixed_precision fp16 on a CPU: use bf16, no, or engine lorabench")
    if recipe.keep_outputs:
        raise UserError("engine trainer keeps no outputs: leave keep_outputs out, or use engine lorabench")


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """Afterwards remove the autocast that accelerate wrapped around the forward pass of ``model``."""
    before = vars(model).get("forward")
    try:
        yield
    finally:
        for name in ("forward", "_original_forward"):
            vars(model).pop(name, None)
        if before is not None:
            model.forward = before


class _TrainerThread:
    """Trainer in a thread that runs only while `take_step` waits for it."""

    def __init__(self, training: Training, seed: int, folder: str) -> None:
        self._wanted = threading.Semaphore(0)
        self._over = threading.Semaphore(0)
        self._stopping = False
        self._error: BaseException | None = None
        self._trainer = make_trainer(training, seed, folder, self._between_steps)
        self._thread = threading.Thread(target=self._train, name="trainer", daemon=True)

    def take_step(self) -> None:
        """Let Trainer run until the end of its next step; raise its error, if any."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._wanted.release()
        self._over.acquire()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End Trainer's loop, as after its last step."""
        if self._thread.is_alive():
            self._stopping = True
            self._wanted.release()
            self._thread.join()
        self._trainer.accelerator.free_memory()

    def _train(self) -> None:
        try:
            self._trainer.train()
        except BaseException as error:  # raised in the waiting thread
            self._error = error
            self._over.release()

    def _between_steps(self) -> bool:
        """Wait until the next step is requested; return whether Trainer shall stop instead."""
        self._over.release()
        self._wanted.acquire()
        return self._stopping


def make_trainer(training: Training, seed: int, folder: str, between_steps: Callable[[], bool]) -> Any:
    """Return a Trainer for the model of ``training``. Its optimizer replaces that of the training's step.

    It calls ``between_steps`` after each step, and stops if that returns True.
    """
    from torch.optim.lr_scheduler import LambdaLR
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback, Trainer, TrainerCallback

    step, recipe = training.step, training.step.recipe

    class OrderedTrainer(Trainer):  # type: ignore[misc]
        """Takes the rows in order, and reports the loss and the gradient norm of each step."""

        def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

        def training_step(self, *arguments: Any, **options: Any) -> Any:
            loss = super().training_step(*arguments, **options)
            reports.losses.append(loss)
            return loss

    class Reports(TrainerCallback):  # type: ignore[misc]
        """Collects loss and gradient norm of a step, and pauses after it."""

        losses: list[torch.Tensor]
        gradient_norm: torch.Tensor

        def on_step_begin(self, arguments: Any, state: Any, control: Any, **unused: Any) -> None:
            import torch

            self.losses = []
            if state.global_step == 0:
                torch.manual_seed(seed)
            if state.global_step >= training.steps:
                stop_learning(step.optimizer)

        def on_step_end(self, arguments: Any, state: Any, control: Any, **unused: Any) -> None:
            training.note(_sum(self.losses), self.gradient_norm)
            step.done += 1
            control.should_training_stop = between_steps()

    forget_overrides()
    reports = Reports()
    rows = Rows(training.batches, recipe.batch_size)
    trainer = OrderedTrainer(
        model=step.model,
        args=_arguments(recipe, step.device_type, seed, folder),
        train_dataset=rows,
        callbacks=[reports],
    )
    trainer.remove_callback(PrinterCallback)
    step.optimizer = trainer.create_optimizer()
    # The learning rate becomes 0 at the step from which `Training` no longer updates the weights.
    trainer.lr_scheduler = LambdaLR(step.optimizer, lambda done: 1.0 if done < training.steps else 0.0)
    clip = trainer.accelerator.clip_grad_norm_

    def clip_and_report(*arguments: Any, **options: Any) -> Any:
        reports.gradient_norm = clip(*arguments, **options)
        return reports.gradient_norm

    trainer.accelerator.clip_grad_norm_ = clip_and_report
    return trainer


def _arguments(recipe: Recipe, device: str, seed: int, folder: str) -> Any:
    """Return Trainer's settings, without gradient checkpointing: the model is already built with it."""
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=MOST_STEPS,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        optim=recipe.optim,
        learning_rate=LEARNING_RATE,
        max_grad_norm=MAX_GRAD_NORM,
        torch_empty_cache_steps=recipe.empty_cache_steps,
        bf16=recipe.mixed_precision == "bf16",
        fp16=recipe.mixed_precision == "fp16",
        seed=seed,
        use_cpu=device == "cpu",
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )
    # n_gpu counts the visible GPUs; with several, Trainer would split every batch.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


class Rows:
    """The rows of a training's batches as a dataset: one sequence per item, in training order."""

    def __init__(self, batches: Batches, batch_size: int) -> None:
        self._batches = batches
        self._batch_size = batch_size

    def __len__(self) -> int:
        return len(self._batches.trained) * self._batch_size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        block, row = divmod(index, self._batch_size)
        inputs = self._batches.inputs(self._batches.trained[block][row])
        labels = inputs["labels"].clone()
        # Nothing predicts a row's first token. With this label every version of Trainer leaves it out of the mean.
        labels[0] = IGNORED
        return {**inputs, "labels": labels}


def _sum(losses: list[torch.Tensor]) -> torch.Tensor:
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total
