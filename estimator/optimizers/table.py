"""The optimizers: one row per optimizer, by its name in transformers' `OptimizerNames`.

Read in torch 2.13 (`torch.optim`), bitsandbytes 0.50 (`optim.optimizer`), transformers 5 (`optimization.Adafactor`),
schedulefree 1.4 and torch-optimi 0.3, for the settings of the training step: no momentum, and weight decay only in
AdamW.
"""

from __future__ import annotations

from lorabench.estimator.dtypes import DTYPES, Dtype
from lorabench.estimator.optimizers import temporaries
from lorabench.estimator.optimizers.optimizer import Library, Optimizer, Update
from lorabench.estimator.optimizers.states import Blockwise, LikeWeights, RowsAndColumns, Scalars

DEFAULT_OPTIMIZER = "adamw_torch_fused"

TORCH = Library("torch", "torch")
TRANSFORMERS = Library("transformers", "transformers")
BITSANDBYTES = Library("bitsandbytes", "bitsandbytes")
SCHEDULEFREE = Library("schedulefree", "schedulefree")
OPTIMI = Library("torch-optimi", "optimi")

MOMENTS = LikeWeights("first and second moments", each=2)
STEPS = Scalars("step counters", "a float32 for each tensor, on the device for the fused kernel", itemsize=4)
STEPS_ON_HOST = STEPS._replace(backends=("cpu",))
"""They are on the device only in a CPU run: there the host is the device."""


NOT_BFLOAT16: tuple[Dtype, ...] = ("float32", "float16")
"""bitsandbytes 0.50 has no kernel of 32-bit RMSprop for bfloat16 gradients (`backends/cuda/ops.py`)."""


def _bitsandbytes(
    name: str,
    *,
    each: int,
    maps: int,
    slow: bool = False,
    bits: int,
    dtypes: tuple[Dtype, ...] = DTYPES,
    unpaged: str | None = None,
    smaller: str | None = None,
) -> Optimizer:
    """Return an optimizer of bitsandbytes. It pages its states if ``unpaged`` names the variant that does not.

    The arguments ``each``, ``maps`` and ``slow`` are those of `Blockwise`.
    """
    return Optimizer(
        name=name,
        library=BITSANDBYTES,
        states=(Blockwise(each, bits, maps, slow=slow, paged=unpaged is not None),),
        # For each tensor, Python code looks up its settings, prefetches its states and launches its update.
        update=Update(over="tensors", calls=3),
        dtypes=dtypes,
        unpaged=unpaged,
        smaller=smaller,
    )


OPTIMIZERS: dict[str, Optimizer] = {
    "adamw_torch_fused": Optimizer(
        name="AdamW",
        library=TORCH,
        states=(MOMENTS, STEPS),
        update=Update(),
        smaller="paged_adamw_8bit",
    ),
    "adamw_torch": Optimizer(
        name="AdamW",
        library=TORCH,
        states=(MOMENTS, STEPS_ON_HOST),
        temporaries=temporaries.adamw,
        # Decay 2, first moment 3, second moment 2 + 4, square root 2, bias correction 2, epsilon 2, and the update 4.
        update=Update(kernels=8, accesses=21),
        smaller="paged_adamw_8bit",
    ),
    "adamw_bnb_8bit": _bitsandbytes("AdamW", each=2, maps=2, bits=8, smaller="paged_adamw_8bit"),
    "adamw_8bit": _bitsandbytes("AdamW", each=2, maps=2, bits=8, smaller="paged_adamw_8bit"),
    "paged_adamw_32bit": _bitsandbytes(
        "AdamW", each=2, maps=2, bits=32, unpaged="adamw_torch", smaller="paged_adamw_8bit"
    ),
    "paged_adamw_8bit": _bitsandbytes("AdamW", each=2, maps=2, bits=8, unpaged="adamw_8bit"),
    "stable_adamw": Optimizer(
        name="StableAdamW",
        library=OPTIMI,
        states=(
            MOMENTS,
            LikeWeights("Kahan sums of the weights' rounding errors", each=1, dtypes=("bfloat16", "float16")),
            Scalars("squares of epsilon", "one for each tensor, in its dtype"),
            Scalars("mean squares", "a float32 for each tensor, for the Triton kernels", 4, backends=("cuda",)),
            Scalars(
                "instead of Kahan sums",
                "a byte for each float32 tensor, for the Triton kernels",
                itemsize=1,
                backends=("cuda",),
                dtypes=("float32",),
            ),
        ),
        temporaries=temporaries.stable_adamw,
        # One Triton kernel updates the moments and sums their ratio. Another reads them again to update weights and
        # Kahan sums. A third sets the ratio to zero.
        update=Update(kernels=3, over="tensors", again=2),
    ),
    "ademamix": _bitsandbytes("AdEMAMix", each=3, maps=2, slow=True, bits=32, smaller="paged_ademamix_8bit"),
    "ademamix_8bit": _bitsandbytes("AdEMAMix", each=3, maps=2, slow=True, bits=8, smaller="paged_ademamix_8bit"),
    "paged_ademamix_32bit": _bitsandbytes(
        "AdEMAMix", each=3, maps=2, slow=True, bits=32, unpaged="ademamix", smaller="paged_ademamix_8bit"
    ),
    "paged_ademamix_8bit": _bitsandbytes("AdEMAMix", each=3, maps=2, slow=True, bits=8, unpaged="ademamix_8bit"),
    "lion_32bit": _bitsandbytes("Lion", each=1, maps=1, bits=32, smaller="paged_lion_8bit"),
    "lion_8bit": _bitsandbytes("Lion", each=1, maps=1, bits=8, smaller="paged_lion_8bit"),
    "paged_lion_32bit": _bitsandbytes("Lion", each=1, maps=1, bits=32, unpaged="lion_32bit", smaller="paged_lion_8bit"),
    "paged_lion_8bit": _bitsandbytes("Lion", each=1, maps=1, bits=8, unpaged="lion_8bit"),
    "rmsprop": Optimizer(
        name="RMSprop",
        library=TORCH,
        states=(LikeWeights("averages of squared gradients", each=1), STEPS_ON_HOST),
        temporaries=temporaries.rmsprop,
        # Average 2 + 4, square root 2, epsilon 2, and the update 4.
        update=Update(kernels=5, accesses=14),
        smaller="rmsprop_bnb_8bit",
    ),
    "rmsprop_bnb": _bitsandbytes("RMSprop", each=1, maps=1, bits=32, dtypes=NOT_BFLOAT16, smaller="rmsprop_bnb_8bit"),
    "rmsprop_bnb_32bit": _bitsandbytes(
        "RMSprop", each=1, maps=1, bits=32, dtypes=NOT_BFLOAT16, smaller="rmsprop_bnb_8bit"
    ),
    "rmsprop_bnb_8bit": _bitsandbytes("RMSprop", each=1, maps=1, bits=8, dtypes=NOT_BFLOAT16),
    "adagrad": Optimizer(
        name="Adagrad",
        library=TORCH,
        states=(LikeWeights("sums of squared gradients", each=1), STEPS_ON_HOST),
        states_made="constructor",
        temporaries=temporaries.adagrad,
        # Sum 4, square root 2, epsilon 2, the gradient times the learning rate 2, and the update 4.
        update=Update(kernels=5, accesses=14),
    ),
    "adafactor": Optimizer(
        name="Adafactor",
        library=TRANSFORMERS,
        states=(RowsAndColumns(),),
        states_made="tensor by tensor",
        temporaries=temporaries.adafactor,
        # The weight's size 1, the gradient's square and epsilon 4, their means over rows and columns 2, the outer
        # product of their roots 1, times the gradient 3, the update's size 1, its clipping 2, its step size 2 and sign
        # 2, and the weight 3.
        update=Update(kernels=24, over="tensors", accesses=21, itemsize=4),
    ),
    "sgd": Optimizer(name="SGD without momentum", library=TORCH, update=Update()),
    "schedule_free_adamw": Optimizer(
        name="schedule-free AdamW",
        library=SCHEDULEFREE,
        states=(LikeWeights("iterates z, which the weights average, and second moments", each=2),),
        temporaries=temporaries.schedule_free,
        # Second moment 2 + 4, bias correction 2, square root 2, epsilon 2, the gradient's division 3, and SGD's 9.
        update=Update(kernels=9, accesses=24),
    ),
    "schedule_free_radam": Optimizer(
        name="schedule-free RAdam",
        library=SCHEDULEFREE,
        states=(LikeWeights("iterates z, which the weights average, and second moments", each=2),),
        temporaries=temporaries.schedule_free,
        update=Update(kernels=9, accesses=24),  # as in schedule-free AdamW
        idle_steps=4,  # RAdam's rectification skips them: their second moments have too much variance
    ),
    "schedule_free_sgd": Optimizer(
        name="schedule-free SGD",
        library=SCHEDULEFREE,
        states=(LikeWeights("iterates z, which the weights average", each=1),),
        # The weight moves towards z 3, then along the gradient 3, and so does z 3.
        update=Update(kernels=3, accesses=9),
    ),
}

_IN_BACKWARD = "it updates each weight during backward, and lorabench counts all gradients before the optimizer's step"
_SVD = "GaLore computes the SVD of each gradient, in workspaces whose size is known only on a GPU"
_COMPILED = "torchao compiles its step at the first run, so its temporaries are not known before"
LEFT_OUT: dict[str, str] = {
    "adamw_torch_xla": "torch_xla's AdamW runs on TPUs: use adamw_torch_fused",
    "adamw_torch_npu_fused": "torch_npu's AdamW runs on Ascend NPUs: use adamw_torch_fused",
    "adamw_anyprecision": "it is part of torchdistx, which pip cannot install: use adamw_torch",
    "adamw_torch_4bit": f"{_COMPILED}: use adamw_8bit",
    "adamw_torch_8bit": f"{_COMPILED}: use adamw_8bit",
    "galore_adamw": f"{_SVD}: use adamw_8bit",
    "galore_adamw_8bit": f"{_SVD}: use adamw_8bit",
    "galore_adafactor": f"{_SVD}: use adafactor",
    "galore_adamw_layerwise": f"{_IN_BACKWARD}: use adamw_8bit",
    "galore_adamw_8bit_layerwise": f"{_IN_BACKWARD}: use adamw_8bit",
    "galore_adafactor_layerwise": f"{_IN_BACKWARD}: use adafactor",
    "apollo_adamw": "APOLLO needs target modules and a rank of its own, and recipes have no settings for them: use "
    "adafactor",
    "apollo_adamw_layerwise": f"{_IN_BACKWARD}: use adafactor",
    "lomo": f"{_IN_BACKWARD}: use sgd",
    "adalomo": f"{_IN_BACKWARD}: use adafactor",
    "grokadamw": "it keeps its states in host memory and copies them to the GPU and back at every step, and lorabench "
    "does not model that: use adamw_torch",
}
"""transformers' name → the reason why it has no row, and an alternative."""
