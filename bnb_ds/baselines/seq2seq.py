"""Wrap an autoregressive encoder-decoder of transformers so that it takes packed batches like BnB.

Shapes: B sequences; N real source tokens of all sequences; L tokens of the longest source; S tokens of the longest
target, including its end token; M predicted target tokens of all sequences; V size of the target vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from bnb_ds.baselines.wrapped import WrappedModel, pad_rows, padded
from bnb_ds.common.packing import PackedLayout
from bnb_ds.errors import ConfigError
from bnb_ds.model.outputs import BnbOutput


@dataclass(frozen=True)
class BeamOptions:
    """Generation settings of an autoregressive model; the key-value cache is always used.

    Attributes:
        max_new_tokens: most tokens of an output, including its end token.
        min_new_tokens: fewest tokens before the end token.
        num_beams: number of hypotheses; 1 is greedy decoding.
        length_penalty: a hypothesis' log-probability is divided by its length to this power.
        no_repeat_ngram_size: an output may not repeat an n-gram of this many tokens; 0: no such rule.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise ConfigError(f"num_beams is {self.num_beams}: give at least 1")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens or self.max_new_tokens < 1:
            raise ConfigError(
                f"min_new_tokens is {self.min_new_tokens} and max_new_tokens is {self.max_new_tokens}: give a"
                " minimum of at least 0 and a maximum that is not smaller"
            )

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of transformers' ``generate``; every setting is explicit."""
        return {"do_sample": False, "use_cache": True, "early_stopping": False, **vars(self)}


class AutoregressiveModel(WrappedModel):
    """Predicts the next token, on the same batches as BnB.

    Args:
        model: an encoder-decoder with a language-model head; :mod:`bnb_ds.baselines.build` sets its special tokens.
        begins_with_start: True if every target begins with the decoder's start token, which is then given and not
            predicted. Otherwise, as in BART, the start token is added before the target.
        label_smoothing: fraction of the target distribution that is uniform, in training mode only.
    """

    def __init__(self, model: PreTrainedModel, *, begins_with_start: bool, label_smoothing: float = 0.0) -> None:
        super().__init__(model)
        self.begins_with_start = begins_with_start
        self.label_smoothing = label_smoothing

    def save_pretrained(self, directory: str | PathLike[str]) -> None:
        """Write a plain Hugging Face directory."""
        # Clone the weights: transformers refuses to write shared weights unless the model's class declares them, and
        # the two halves of a bert2bert may share all of theirs.
        weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.model.save_pretrained(directory, state_dict=weights)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights. Weights that are never trained (Marian's positions) may be missing: DeepSpeed drops them."""
        fixed = {name: weight.detach() for name, weight in self.named_parameters() if not weight.requires_grad}
        return super().load_state_dict({**fixed, **state_dict}, strict=strict, assign=assign)

    def loss_count(self, num_targets: int, num_samples: int) -> int:
        """The number of predicted tokens of ``num_samples`` targets with ``num_targets`` tokens in all."""
        return num_targets - num_samples * self.begins_with_start

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
        """Compute the loss of a packed batch.

        Args:
            input_ids: int64 [N], sources back to back, with their special tokens.
            cu_seqlens: int32 [B + 1], offsets of the sources; it may be on the CPU, and so may ``label_lengths``.
            max_seqlen: L.
            labels: int64 [sum of label_lengths], targets back to back, with their special tokens; each target ends with
                the end token.
            label_lengths: int64 [B], tokens of each target.
            max_label_length: S, if the caller knows it; this avoids a synchronisation with the GPU.
            return_logits: also return the logits [M, V] of the predicted tokens.

        Returns:
            The sum of losses of all predicted tokens in nats, and their number.
        """
        cu_seqlens, label_lengths = (x.to(labels.device, non_blocking=True) for x in (cu_seqlens, label_lengths))
        source = PackedLayout.from_cu_seqlens(cu_seqlens, num_tokens=input_ids.numel(), max_seqlen=max_seqlen)
        longest = int(label_lengths.max()) if max_label_length is None else max_label_length
        num_labels = self.loss_count(labels.numel(), label_lengths.numel())
        given = int(self.begins_with_start)
        target = PackedLayout.from_lengths(label_lengths - given, num_tokens=num_labels, max_seqlen=longest - given)
        inputs_M, targets_M = self._shifted(labels, label_lengths, target)
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
            loss_count=torch.full((), num_labels, device=labels.device),
            num_infeasible=torch.zeros((), dtype=torch.int64, device=labels.device),
            logits=logits_MV if return_logits else None,
        )

    def _shifted(self, labels: Tensor, label_lengths: Tensor, target: PackedLayout) -> tuple[Tensor, Tensor]:
        """The decoder's input tokens, int64 [M], and the token to predict after each, int64 [M]."""
        starts_B = label_lengths.cumsum(0) - label_lengths
        if self.begins_with_start:
            place_M = starts_B.index_select(0, target.sequence_ids) + target.position_ids
            return labels.index_select(0, place_M), labels.index_select(0, place_M + 1)
        return labels.roll(1).index_fill(0, starts_B, self.config.decoder_start_token_id), labels

    @torch.inference_mode()
    def generate_rows(
        self,
        rows: Sequence[Sequence[int]],
        options: BeamOptions,
        *,
        lengths: Sequence[int] | None = None,
        synchronised: bool = False,
    ) -> list[list[int]]:
        """Decode sources as one batch; return the outputs without start and end tokens.

        Args:
            rows: token ids of each source, with its special tokens.
            options: generation settings.
            lengths: force each output to this many tokens, including its end token; at most
                ``options.max_new_tokens``.
            synchronised: continue until all ranks have finished.
        """
        if not rows:
            return []
        ids_BL, mask_BL = pad_rows([list(row) for row in rows], self.config.pad_token_id, self.device)
        processors = LogitsProcessorList()
        if lengths is not None:
            special = (self.config.eos_token_id, self.config.pad_token_id)
            processors.append(ExactLengths(lengths, options.num_beams, *special))
        output = self.model.generate(
            ids_BL,
            attention_mask=mask_BL,
            logits_processor=processors,
            decoder_start_token_id=self.config.decoder_start_token_id,
            **_special_tokens(self.config),
            **options.arguments(),
            synced_gpus=synchronised,
        )
        return [self._bare(row) for row in output[:, 1:].tolist()]

    def _bare(self, row: list[int]) -> list[int]:
        """A generated row, cut at its end token."""
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


class ExactLengths(LogitsProcessor):
    """Forces each output to a given length: the end token is forced there and forbidden before.

    It changes only two columns of the scores and the rows that end, so it costs very little next to the model.

    Args:
        lengths: tokens of each output, including its end token but not the start token.
        num_beams: hypotheses of each output.
        eos_id: the end token.
        pad_id: the token that fills a row after its end; it is forbidden before.
    """

    def __init__(self, lengths: Sequence[int], num_beams: int, eos_id: int, pad_id: int) -> None:
        self._lengths = [length for length in lengths for _ in range(num_beams)]
        self._eos_id = eos_id
        self._ends = sorted({eos_id, pad_id})

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Change the scores of the next token, float [R, V] for R rows, in place."""
        number = input_ids.shape[1]  # number of the next token; the start token has number 0
        scores[:, self._ends] = -torch.inf
        ending = [row for row, length in enumerate(self._lengths) if number >= length]
        if ending:
            scores[ending] = -torch.inf
            scores[ending, self._eos_id] = 0.0
        return scores
