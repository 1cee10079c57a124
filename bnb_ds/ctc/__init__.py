"""The CTC loss without the full logits, and greedy collapse.

Face: `CtcOutput`, `collapse`, `ctc_loss`, `linear_argmax`, `linear_best`, `linear_ctc_loss`.
"""

from bnb_ds.ctc.greedy import collapse, linear_argmax, linear_best
from bnb_ds.ctc.loss import CtcOutput, ctc_loss, linear_ctc_loss

__all__ = ["CtcOutput", "collapse", "ctc_loss", "linear_argmax", "linear_best", "linear_ctc_loss"]
