"""The auxiliary loss of pre-training: masked tokens predicted from the encoder itself.

BERT's own objective on the encoder's last hidden states, through a head of its own whose matrix is the encoder's word
embeddings. The head serves training only: exported models do not have it.

Shapes: C tokens chosen for masking, H hidden size of the encoder, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar

from torch import Tensor

from bnb_ds.model.from_bert import read_bert
from bnb_ds.model.layers import BnbLMHead
from bnb_ds.model.outputs import BnbOutput
from bnb_ds.model.target_loss import cross_entropy_sum
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration

_PREFIX = "encoder_mlm_head."


@dataclass
class PretrainingOutput(BnbOutput):
    """What `BnbForPretraining` returns where masked tokens are named.

    Attributes:
        encoder_mlm_sum: float32 [], nats of the masked tokens added up.
    """

    encoder_mlm_sum: Tensor | None = None


class BnbForPretraining(BnbForConditionalGeneration):
    """The model with a head for masked tokens on its encoder."""

    _keys_to_ignore_on_load_missing: ClassVar[list[str]] = [rf"^{_PREFIX}"]

    def __init__(self, config: BnbConfig):
        super().__init__(config)
        self.encoder_mlm_head = BnbLMHead(config.encoder)
        self.post_init()

    @classmethod
    def from_bert(
        cls, encoder: str | PathLike[str], decoder: str | PathLike[str] | None = None, **overrides: Any
    ) -> BnbForPretraining:
        """As `BnbForConditionalGeneration.from_bert`; the head starts from that of the encoder's checkpoint, if any."""
        model = super().from_bert(encoder, decoder, **overrides)
        head = read_bert(encoder).head
        if head is not None:
            model.encoder_mlm_head.load_state_dict(head)
        return model

    def forward(
        self,
        *args: Any,
        masked_index: Tensor | None = None,
        masked_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> BnbOutput:
        """As `BnbForConditionalGeneration.forward`, on packed input.

        Args:
            masked_index: int64 [C], places in the packed source to predict the original tokens of; None: as without
                the head.
            masked_labels: int64 [C], those tokens.
        """
        output = super().forward(*args, **kwargs)
        if masked_index is None:
            return output
        chosen_CH = output.encoder_last_hidden_state.index_select(0, masked_index)
        return PretrainingOutput(**output, encoder_mlm_sum=self._nats(self.encoder_mlm_head(chosen_CH), masked_labels))

    def _nats(self, hidden_CH: Tensor, labels_C: Tensor) -> Tensor:
        bias_V = self.encoder_mlm_head.bias
        weight_VH = self.model.get_input_embeddings().weight
        if labels_C.numel() == 0:
            # A batch without masked tokens still gives every parameter its gradient: ZeRO waits for all of them.
            return (hidden_CH.sum() + bias_V.sum() * 0 + weight_VH.sum() * 0).float()
        return cross_entropy_sum(hidden_CH, weight_VH, bias_V, labels_C, blank=self.config.blank_token_id).loss


def without_head(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the model itself."""
    return {name: weight for name, weight in weights.items() if not name.startswith(_PREFIX)}
