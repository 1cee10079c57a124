"""An autoregressive encoder-decoder of transformers behind the packed interface of BnB.

Shapes: B sequences, N real source tokens of all together, L of the longest; S target tokens of the longest, one more
with the token that ends it; V vocabulary of the target.
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
    """How an autoregressive model writes; always with the key-value cache.

    Attributes:
        max_new_tokens: most tokens of an output, the one that ends it included.
        min_new_tokens: fewest before it may end.
        num_beams: hypotheses kept; 1 is greedy.
        length_penalty: exponent of the length by which a hypothesis' log-probability is divided.
        no_repeat_ngram_size: no n-gram of that many tokens twice; 0 for no such rule.
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
                f"min_new_tokens is {self.min_new_tokens} and max_new_tokens {self.max_new_tokens}: give 0 or more, and"
                " no less than that"
            )

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of transformers' ``generate``, every setting said."""
        return {"do_sample": False, "use_cache": True, "early_stopping": False, **vars(self)}


class AutoregressiveModel(WrappedModel):
    """Next-token prediction on the batches that BnB is trained on.

    Args:
        model: an encoder-decoder with a language-model head, its special tokens set (:mod:`bnb_ds.baselines.build`).
        begins_with_start: the first token of every target is the decoder's start token, which is given and not
            predicted; otherwise the start token is put before it, as BART has it.
        label_smoothing: share of the target distribution that is uniform, in training mode only.
    """

    def __init__(self, model: PreTrainedModel, *, begins_with_start: bool, label_smoothing: float = 0.0) -> None:
        super().__init__(model)
        self.begins_with_start = begins_with_start
        self.label_smoothing = label_smoothing

    def save_pretrained(self, directory: str | PathLike[str]) -> None:
        """Write a plain Hugging Face directory."""
        # Clones: transformers refuses to write weights that two modules share unless the model's class says so, and
        # the two halves of a bert2bert may share all of theirs.
        weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.model.save_pretrained(directory, state_dict=weights)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Weights that are never trained, Marian's table of positions, may be missing: DeepSpeed does not keep them."""
        fixed = {name: weight.detach() for name, weight in self.named_parameters() if not weight.requires_grad}
        return super().load_state_dict({**fixed, **state_dict}, strict=strict, assign=assign)

    def loss_count(self, num_targets: int, num_samples: int) -> int:
        """Tokens that are predicted of ``num_targets`` in as many targets as ``num_samples``."""
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
        """The loss of a packed batch.

        Args:
            input_ids: int64 [N], sources back to back, with their special tokens.
            cu_seqlens: int32 [B + 1], where each begins.
            max_seqlen: L.
            labels: int64 [sum of label_lengths], targets back to back, with their special tokens; the last one ends
                a target.
            label_lengths: int64 [B].
            max_label_length: S, if the caller knows it; spares a GPU from waiting.
            return_logits: also the logits, packed, of each token that is predicted.

        Returns:
            Nats of all predicted tokens added up, and their number.
        """
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
            loss_count=torch.tensor(num_labels, device=labels.device),
            num_infeasible=torch.zeros((), dtype=torch.int64, device=labels.device),
            logits=logits_MV if return_logits else None,
        )

    def _shifted(self, labels: Tensor, label_lengths: Tensor, target: PackedLayout) -> tuple[Tensor, Tensor]:
        """What the decoder reads, and what it is to predict after each token of that."""
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
        """Outputs of sources that are decoded together, without the start token and the one that ends them.

        Args:
            rows: token ids of each source, with its special tokens.
            options: how to write.
            lengths: tokens that each output is made to have, the one that ends it included; at most
                ``options.max_new_tokens``.
            synchronised: go on as long as any rank writes.
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


class ExactLengths(LogitsProcessor):
    """Each output ends exactly where it is told to: the end token is forced there, and nowhere before.

    It touches two columns of the scores and the rows that end, so that it costs next to nothing beside the model.

    Args:
        lengths: tokens of each output, the one that ends it included, the start token not.
        num_beams: hypotheses of each.
        eos_id: ends an output.
        pad_id: comes after the end, and is not written before it.
    """

    def __init__(self, lengths: Sequence[int], num_beams: int, eos_id: int, pad_id: int) -> None:
        self._lengths = [length for length in lengths for _ in range(num_beams)]
        self._eos_id = eos_id
        self._ends = sorted({eos_id, pad_id})

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores float [R, V] of R rows' next token, changed in place."""
        number = input_ids.shape[1]  # of the next token; the start token is number 0
        scores[:, self._ends] = -torch.inf
        ending = [row for row, length in enumerate(self._lengths) if number >= length]
        if ending:
            scores[ending] = -torch.inf
            scores[ending, self._eos_id] = 0.0
        return scores
