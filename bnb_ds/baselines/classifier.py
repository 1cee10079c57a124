"""Wrap a classifier of transformers (BERT, RoBERTa, OpenAI GPT) so that it takes packed batches like BnB.

Shapes: B sequences; N real tokens of all sequences; L tokens of the longest; C classes.
"""

from __future__ import annotations

import inspect
from os import PathLike

from torch import Tensor
from transformers import PreTrainedModel

from bnb_ds.baselines.wrapped import WrappedModel, padded
from bnb_ds.common.packing import pack_inputs
from bnb_ds.model.classification import classification_output
from bnb_ds.model.outputs import BnbClassifierOutput


class ClassifierModel(WrappedModel):
    """Classifies packed or padded sequences.

    Args:
        model: a model with a classification head and a ``pad_token_id``.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        # OpenAI GPT has no segments, it would embed token types as words; and a RoBERTa has one type.
        takes = inspect.signature(model.forward).parameters
        self._takes_token_types = "token_type_ids" in takes and getattr(model.config, "type_vocab_size", 1) > 1

    def save_pretrained(self, directory: str | PathLike[str]) -> None:
        """Write a plain Hugging Face directory."""
        self.model.save_pretrained(directory)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> BnbClassifierOutput:
        """As `bnb_ds.model.classification.BnbForSequenceClassification.forward`."""
        packed = pack_inputs(input_ids, attention_mask, token_type_ids, cu_seqlens, max_seqlen)
        layout = packed.layout
        ids_BL, mask_BL = padded(packed.input_ids, layout, self.config.pad_token_id)
        inputs = {"input_ids": ids_BL, "attention_mask": mask_BL}
        if self._takes_token_types:
            inputs["token_type_ids"] = layout.pad(packed.token_type_ids, 0)
        return classification_output(self.model(**inputs).logits, labels)
