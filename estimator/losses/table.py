"""The fused losses by their names in a recipe."""

from __future__ import annotations

from lorabench.estimator.losses.cut_cross_entropy import CUT_CROSS_ENTROPY
from lorabench.estimator.losses.fused import FusedLoss
from lorabench.estimator.losses.liger import LIGER
from lorabench.estimator.losses.trl import TRL

FUSED_LOSSES: dict[str, FusedLoss] = {loss.name: loss for loss in (LIGER, TRL, CUT_CROSS_ENTROPY)}
