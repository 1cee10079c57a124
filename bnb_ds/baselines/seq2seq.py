"""An autoregressive encoder-decoder of transformers behind the packed interface of BnB.

Shapes: B sequences, N real source tokens of all together, L of the longest; S target tokens of the longest, one more
with the token that ends it; V vocabulary of the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from bnb_ds.baselines.padded import pad_rows, padded
from bnb_ds.batch import PackedBatch
from bnb_ds.errors import ConfigError
from bnb_ds.model_outputs import BnbOutput
from bnb_ds.packing import PackedLayout


@dataclass(frozen=True)
class BeamOptions:
    """How an autoregressive model writes; always with the key-value cache.

    Attributes:
        num_beams: hypotheses kept; 1 is greedy.
        max_length: most tokens of an output, without the first and the last special one.
        min_length: fewest.
        length_penalty: exponent of the length by which a hypothesis' log-probability is divided.
        no_repeat_ngram_size: no n-gram of that many tokens twice; 0 for no such rule.
        num_tokens: exactly that many tokens for every output, whatever the model would write: what a fair measurement
            of speed needs. Takes the place of both lengths.
    """

    num_beams: int = 1
    max_length: int = 128
    min_length: int = 0
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise ConfigError(f"num_beams is {self.num_beams}: give at least 1")
        if not 0 <= self.min_length <= self.max_length or self.max_length < 1:
            raise ConfigError(
                f"min_length is {self.min_length} and max_length {self.max_length}: give 0 <= min_length <= max_length"
            )

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of transformers' ``generate``, every setting said."""
        fewest, most = (self.min_length, self.max_length) if self.num_tokens is None else (self.num_tokens,) * 2
        # transformers counts the token that ends an output as a new one.
        ends = 1 if self.num_tokens is None else 0
        return {
            "do_sample": False,
            "use_cache": True,
            "num_beams": self.num_beams,
            "min_new_tokens": fewest,
            "max_new_tokens": most + ends,
            "length_penalty": self.length_penalty,
            "early_stopping": False,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
        }


class AutoregressiveModel(nn.Module):
    """Next-token prediction on the batches that BnB is trained on.

    Args:
        model: an encoder-decoder with a language-model head, its special tokens set (:mod:`bnb_ds.baselines.build`).
        label_smoothing: share of the target distribution that is uniform, in training mode only.
    """

    def __init__(self, model: PreTrainedModel, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    @property
    def config(self) -> Any:
        """Of the transformers model."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    def gradient_checkpointing_enable(self, settings: dict[str, Any]) -> None:
        """As `transformers.PreTrainedModel` has it; the engine calls it."""
        self.model.gradient_checkpointing_enable(settings)

    def save_pretrained(self, directory: str | PathLike[str]) -> None:
        """Write a plain Hugging Face directory."""
        # Clones: transformers refuses to write weights that two modules share unless the model's class says so, and
        # the two halves of a bert2bert may share all of theirs.
        weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.model.save_pretrained(directory, state_dict=weights)

    @staticmethod
    def loss_count(batch: PackedBatch) -> int:
        """What the sum of the loss is divided by: the target tokens and, of each sequence, the token that ends it."""
        return batch.labels.numel() + batch.label_lengths.numel()

    def forward(
        self,
        input_ids: Tensor,
        *,
        cu_seqlens: Tensor,
        max_seqlen: int,
        labels: Tensor,
        label_lengths: Tensor,
        max_label_length: int | None = None,
        return_logits: bool = False,
    ) -> BnbOutput:
        """The loss of a packed batch.

        Args:
            input_ids: int64 [N], sources back to back, with their special tokens.
            cu_seqlens: int32 [B + 1], where each begins.
            max_seqlen: L.
            labels: int64 [sum of label_lengths], targets back to back, without special tokens.
            label_lengths: int64 [B].
            max_label_length: S, if the caller knows it; spares a GPU from waiting.
            return_logits: also the logits, packed [sum of label_lengths + B, V].

        Returns:
            Nats of all target tokens and ends added up, and their number.
        """
        source = PackedLayout.from_cu_seqlens(cu_seqlens, num_tokens=input_ids.numel(), max_seqlen=max_seqlen)
        longest = int(label_lengths.max()) if max_label_length is None else max_label_length
        num_labels = labels.numel() + label_lengths.numel()
        target = PackedLayout.from_lengths(label_lengths + 1, num_tokens=num_labels, max_seqlen=longest + 1)
        inputs_M, targets_M = self._shifted(labels, target)
        pad_id = self.config.pad_token_id
        ids_BL, mask_BL = padded(input_ids, source, pad_id)
        decoder_ids_BS, decoder_mask_BS = padded(inputs_M, target, pad_id)
        logits_BSV = self.model(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            decoder_input_ids=decoder_ids_BS,
            decoder_attention_mask=decoder_mask_BS,
            use_cache=False,
        ).logits
        logits_MV = target.unpad(logits_BSV).float()
        smoothing = self.label_smoothing if self.training else 0.0
        loss_sum = F.cross_entropy(logits_MV, targets_M, reduction="sum", label_smoothing=smoothing)
        return BnbOutput(
            loss=loss_sum / num_labels,
            loss_sum=loss_sum,
            loss_count=torch.tensor(num_labels, device=labels.device),
            num_infeasible=torch.zeros((), dtype=torch.int64, device=labels.device),
            logits=logits_MV if return_logits else None,
        )

    def _shifted(self, labels: Tensor, target: PackedLayout) -> tuple[Tensor, Tensor]:
        """What the decoder reads (the start token, then the target) and what it is to predict (the target, its end)."""
        starts_B = target.cu_seqlens[:-1].long()
        ends_B = target.cu_seqlens[1:].long() - 1
        not_last = torch.ones(target.num_tokens, dtype=torch.bool, device=labels.device).index_fill_(0, ends_B, 0)
        not_first = torch.ones_like(not_last).index_fill_(0, starts_B, 0)
        inputs = labels.new_full((target.num_tokens,), self.config.decoder_start_token_id)
        targets = labels.new_full((target.num_tokens,), self.config.eos_token_id)
        return inputs.masked_scatter_(not_first, labels), targets.masked_scatter_(not_last, labels)

    @torch.inference_mode()
    def generate_rows(self, rows: Sequence[Sequence[int]], options: BeamOptions) -> list[list[int]]:
        """Outputs of sources that are decoded together, without special tokens.

        Args:
            rows: token ids of each source, with its special tokens.
            options: how to write.
        """
        if not rows:
            return []
        ids_BL, mask_BL = pad_rows([list(row) for row in rows], self.config.pad_token_id, self.device)
        output = self.model.generate(
            ids_BL,
            attention_mask=mask_BL,
            decoder_start_token_id=self.config.decoder_start_token_id,
            **_special_tokens(self.config),
            **options.arguments(),
        )
        # One place more than the longest output was left for the token that ends it; not every output has one.
        most = options.num_tokens or options.max_length
        return [self._bare(row)[:most] for row in output[:, 1:].tolist()]

    def _bare(self, row: list[int]) -> list[int]:
        """A generated row up to its end."""
        ends = {self.config.eos_token_id, self.config.pad_token_id}
        end = next((place for place, token in enumerate(row) if token in ends), len(row))
        return row[:end]


def _special_tokens(config: Any) -> dict[str, int | None]:
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "forced_bos_token_id": None,
        "forced_eos_token_id": None,
    }
