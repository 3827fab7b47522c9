"""The same training through transformers' Trainer: its loop, data loader, optimizer, clipping, autocast and callbacks.

Trainer runs a whole training at a time, while meters want a step at a time. So it runs in a thread of its own, which
waits after each step until the next is wanted; never do both threads work at once.
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
"""Trainer wants to know how many steps there will be at most; it is stopped when no more are wanted."""


@contextmanager
def trainer_steps(training: Training, seed: int) -> Iterator[Callable[[], None]]:
    """Return a function that lets Trainer take the next step of ``training``, until the context ends.

    Trainer makes the optimizer, which becomes that of ``training``. Its settings are its defaults, but for what the
    recipe says, the learning rate that lorabench trains with, held constant, and rows in order instead of shuffled.
    Dropout is seeded as in lorabench's own loop, with ``seed`` just before the first step.

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


def refuse_impossible(recipe: Recipe, device: str) -> None:
    """Refuse what Trainer does not do.

    Raises:
        UserError: fp16 autocast on a CPU, which accelerate refuses.
    """
    if recipe.mixed_precision == "fp16" and device == "cpu":
        raise UserError("engine trainer has no mixed_precision fp16 on a CPU: use bf16 or no, or engine lorabench")


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """Take off ``model`` the autocast in which accelerate wraps its forward pass."""
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
        """Let Trainer go on until the end of its next step; raise what it raised."""
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
        except BaseException as error:  # the thread that waits raises it
            self._error = error
            self._over.release()

    def _between_steps(self) -> bool:
        """Wait until another step is wanted; tell whether none is any more."""
        self._over.release()
        self._wanted.acquire()
        return self._stopping


def make_trainer(training: Training, seed: int, folder: str, between_steps: Callable[[], bool]) -> Any:
    """Return a Trainer of the model of ``training``, whose optimizer becomes that of its step.

    It calls ``between_steps`` after each step, and ends where that says so.
    """
    from torch.optim.lr_scheduler import LambdaLR
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback, Trainer, TrainerCallback

    step, recipe = training.step, training.step.recipe

    class OrderedTrainer(Trainer):  # type: ignore[misc]
        """Takes the rows in order, and tells the loss and the gradient norm of each step."""

        def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

        def training_step(self, *arguments: Any, **options: Any) -> Any:
            loss = super().training_step(*arguments, **options)
            told.losses.append(loss)
            return loss

    class Told(TrainerCallback):  # type: ignore[misc]
        """What a step says of itself, and the pause after it."""

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
            control.should_training_stop = between_steps()

    forget_overrides()
    told = Told()
    rows = Rows(training.batches, recipe.batch_size)
    trainer = OrderedTrainer(
        model=step.model, args=_arguments(recipe, step.device_type, seed, folder), train_dataset=rows, callbacks=[told]
    )
    trainer.remove_callback(PrinterCallback)
    step.optimizer = trainer.create_optimizer()
    # At a learning rate of 0 from the step on at which `Training` learns no more.
    trainer.lr_scheduler = LambdaLR(step.optimizer, lambda done: 1.0 if done < training.steps else 0.0)
    clip = trainer.accelerator.clip_grad_norm_

    def clip_and_tell(*arguments: Any, **options: Any) -> Any:
        told.gradient_norm = clip(*arguments, **options)
        return told.gradient_norm

    trainer.accelerator.clip_grad_norm_ = clip_and_tell
    return trainer


def _arguments(recipe: Recipe, device: str, seed: int, folder: str) -> Any:
    """Return Trainer's settings; gradient checkpointing is not among them, for the model was built with it."""
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=MOST_STEPS,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        optim=recipe.optim,
        learning_rate=LEARNING_RATE,
        max_grad_norm=MAX_GRAD_NORM,
        bf16=recipe.mixed_precision == "bf16",
        fp16=recipe.mixed_precision == "fp16",
        seed=seed,
        use_cpu=device == "cpu",
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )
    # Asking for the device counts the GPUs that are visible; over several, Trainer would split every batch.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


class Rows:
    """The rows of a training's batches as a dataset: one sequence each, in the order in which they are trained."""

    def __init__(self, batches: Batches, batch_size: int) -> None:
        self._blocks = batches.trained
        self._batch_size = batch_size

    def __len__(self) -> int:
        return len(self._blocks) * self._batch_size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        block, row = divmod(index, self._batch_size)
        ids = self._blocks[block][row]
        labels = ids.clone()
        # Nothing predicts a row's first token; said like this, every version of Trainer leaves it out of the mean.
        labels[0] = IGNORED
        return {"input_ids": ids, "labels": labels}


def _sum(losses: list[torch.Tensor]) -> torch.Tensor:
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total
