"""Length classification: predicts the target's length and interpolates the latents to that length.

Shapes: B sequences, N real source tokens and T decoder slots of all sequences together, L latent size, C length
classes, K candidate lengths of a source.

Source: Shu et al., Latent-Variable Non-Autoregressive Neural Machine Translation with Deterministic Inference using a
Delta Posterior, AAAI 2020, section 3.3 (length transform); Sohrab et al., BERT-NAR-BERT, IEEE Access 12 (2024).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnb_ds.common.packing import PackedLayout
from bnb_ds.ctc.operands import exact_dtype
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.targets.interface import Targets


def length_bounds(config: BnbConfig, shortest: int = 1, longest: int | None = None) -> tuple[int, int | None]:
    """The least and the greatest length that can be predicted: the caller's bounds within the configuration's."""
    shortest = max(config.decoder_length_min, shortest)
    longest = min((bound for bound in (config.decoder_length_max, longest) if bound is not None), default=None)
    return (shortest, None) if longest is None else (min(shortest, longest), longest)


def most_lengths(
    source_lengths: npt.ArrayLike, config: BnbConfig, shortest: int = 1, longest: int | None = None
) -> int:
    """How many different lengths :meth:`LengthPredictor.best` can give for one of these sources, at least 1.

    Args:
        source_lengths: integers [B].
        config, shortest, longest: as for `length_bounds`.
    """
    shortest, longest = length_bounds(config, shortest, longest)
    lengths_B = np.asarray(source_lengths, np.int64)
    first_B = np.maximum(lengths_B + config.length_difference_min, shortest)
    last_B = lengths_B + config.length_difference_max
    if longest is not None:
        last_B = np.minimum(last_B, longest)
    return max(int((last_B - first_B).max(initial=0)) + 1, 1)


class LengthPredictor(nn.Module):
    """Predicts the target length from the source's latents, with a class for each difference of the two lengths."""

    def __init__(self, config: BnbConfig):
        super().__init__()
        self._config = config
        self._first_difference = config.length_difference_min
        self.classifier = nn.Linear(config.latent_size, config.length_difference_max - config.length_difference_min + 1)
        #: logarithm of the width of `stretch_latents`, a learned parameter; None if no slot's input holds a latent. Its
        #: shape is [1] because DeepSpeed cannot broadcast a parameter without a dimension.
        self.log_width = nn.Parameter(torch.zeros(1)) if config.decoder_latent else None

    @property
    def width(self) -> Tensor:
        """The width of `stretch_latents`: [1], float32 or wider."""
        assert self.log_width is not None
        return self.log_width.to(exact_dtype(self.log_width.dtype)).exp()

    def forward(self, latent_NL: Tensor, source: PackedLayout) -> Tensor:
        """Logits [B, C], from the mean latent over the real tokens of each source."""
        # A sum over a long source may be too large for 16 bits; its mean is not.
        mean_BL = source.pad(latent_NL).sum(1, dtype=exact_dtype(latent_NL.dtype)) / source.lengths[:, None]
        return self.classifier(mean_BL.to(latent_NL.dtype))

    def nll(self, logits_BC: Tensor, source_lengths_B: Tensor, target_lengths_B: Tensor) -> Tensor:
        """Cross-entropy [B] in nats, float32 or wider. A length outside the classes belongs to the nearest class."""
        classes_B = target_lengths_B - source_lengths_B - self._first_difference
        classes_B = classes_B.clamp(0, logits_BC.shape[1] - 1)
        return F.cross_entropy(logits_BC.to(exact_dtype(logits_BC.dtype)), classes_B, reduction="none")

    def best(
        self,
        logits_BC: Tensor,
        source_lengths_B: Tensor,
        num_candidates: int = 1,
        shortest: int = 1,
        longest: int | None = None,
    ) -> Tensor:
        """int64 [B, K], the most probable lengths, best first. A source with fewer possible lengths repeats its best.

        Lengths are within the bounds of the configuration and within the caller's ``shortest`` and ``longest``.
        """
        shortest, longest = length_bounds(self._config, shortest, longest)
        num_classes = logits_BC.shape[1]
        differences_C = torch.arange(num_classes, device=logits_BC.device) + self._first_difference
        lengths_BC = source_lengths_B[:, None] + differences_C
        possible_BC = lengths_BC >= shortest
        if longest is not None:
            possible_BC &= lengths_BC <= longest
        scores_BC = logits_BC.float().masked_fill(~possible_BC, -torch.inf)
        scores_BK, classes_BK = scores_BC.topk(min(num_candidates, num_classes), dim=1)
        candidates_BK = lengths_BC.gather(1, classes_BK)
        candidates_BK = torch.where(scores_BK == -torch.inf, candidates_BK[:, :1], candidates_BK)
        # If no class is possible at all, the bounds decide.
        return candidates_BK.clamp(shortest, longest)


def stretch_latents(latent_NL: Tensor, source: PackedLayout, target: PackedLayout, width: Tensor) -> Tensor:
    """Turn latents of n source tokens into latents of T slots, by monotonic Gaussian interpolation.

    Slot j gets the mean of the latents z_k, weighted by ``softmax_k(-(k - j n / T)^2 / (2 width^2))``.

    Args:
        latent_NL: float [N, L].
        source: layout of the source tokens.
        target: layout of the slots.
        width: float [1], in source tokens, above 0. Squares of distances reach 2^20, too much for float16, so scores
            are in float32 or wider.

    Returns:
        float [T, L].
    """
    ratio_B = source.lengths.double() / target.lengths
    centre_T = target.position_ids * ratio_B.index_select(0, target.sequence_ids)
    token_M = torch.arange(source.max_seqlen, device=latent_NL.device)
    distance_BTM = token_M - target.pad(centre_T)[..., None]
    width = width.to(exact_dtype(width.dtype))
    scores_BTM = -distance_BTM.square().to(width.dtype) / (2 * width.square())
    if source.key_mask is not None:
        scores_BTM = scores_BTM.masked_fill(~source.key_mask[:, 0], -torch.inf)
    weights_BTM = scores_BTM.softmax(-1).to(latent_NL.dtype)
    return target.unpad(weights_BTM @ source.pad(latent_NL))


def length_scores(
    predictor: LengthPredictor, logits_BC: Tensor, source_lengths_B: Tensor, targets: Targets, weight_B: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum of the nats of target lengths, each times the weight of its sequence, and their mean."""
    nll_B = predictor.nll(logits_BC, source_lengths_B, targets.lengths)
    return (nll_B * weight_B).sum(), nll_B.detach().mean()
