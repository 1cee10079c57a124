"""Give a model more tokens, or fewer: word embeddings, the biases of the heads, and the configuration.

Shapes: V tokens of a vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bnb_ds.errors import ConfigError
from bnb_ds.model.configuration import BnbConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Base
else:
    _Base = object

#: ids of special tokens in `BnbConfig`, by the vocabulary that they belong to
_SPECIAL_IDS = {
    "source": ("pad_token_id",),
    "target": ("blank_token_id", "pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id"),
}
#: attributes that hold the head over a vocabulary; each head has a bias of its own
_HEADS = {"source": "encoder_mlm_head", "target": "lm_head"}


class ResizesVocabularies(_Base):
    """The method of transformers, for a model of two vocabularies whose heads have biases."""

    config: BnbConfig

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
        *,
        half: str = "both",
    ) -> nn.Embedding:
        """Change the number of tokens, at the end of the vocabulary.

        Args:
            new_num_tokens: number of tokens afterwards; None: as many as now.
            pad_to_multiple_of: round that number up to a multiple.
            mean_resizing: new rows are close to the mean of the old ones; else they are drawn as in a new model.
            half: ``both``, or only the ``source`` or ``target`` vocabulary of a model that has two.

        Returns:
            The embeddings of the source tokens.

        Raises:
            ConfigError: ``half`` does not fit the model, or a special token would be lost.
        """
        if new_num_tokens is None and pad_to_multiple_of is None:
            return self.get_input_embeddings()
        embeddings = self._chosen_vocabularies(half)
        if new_num_tokens is not None:
            multiple = pad_to_multiple_of or 1
            self._refuse_loss_of_special_tokens(embeddings, -(-new_num_tokens // multiple) * multiple)
        for name, words in embeddings.items():
            resized = self._get_resized_embeddings(words, new_num_tokens, pad_to_multiple_of, mean_resizing)
            for head in (getattr(self, _HEADS[role], None) for role in self._roles(name)):
                if head is not None:
                    head.bias.data = _resized_bias(head.bias.data, resized.num_embeddings, as_mean=mean_resizing)
        self._record_sizes({name: words.num_embeddings for name, words in embeddings.items()})
        return self.get_input_embeddings()

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Replace the decoder's word embeddings, which are the output matrix."""
        self.base_model.writer.embeddings.word_embeddings = new_embeddings

    def _vocabularies(self) -> dict[str, nn.Embedding]:
        """The word embeddings of each half that the model has."""
        found = {"source": self.get_input_embeddings()}
        decoder = getattr(self.base_model, "decoder", None)
        if decoder is not None:
            found["target"] = decoder.embeddings.word_embeddings
        return found

    def _roles(self, name: str) -> tuple[str, ...]:
        """What a vocabulary serves; without a decoder, one serves sources and targets."""
        return (name,) if self.config.has_decoder else ("source", "target")

    def _chosen_vocabularies(self, half: str) -> dict[str, nn.Embedding]:
        found = self._vocabularies()
        if half not in ("both", *found):
            raise ConfigError(f"half is {half!r}: give one of: both, {', '.join(found)}")
        if half != "both":
            if self.config.tie_encoder_decoder:
                raise ConfigError(
                    f"half is {half!r}, but the halves of this model share their embeddings: leave it out"
                )
            return {half: found[half]}
        sizes = {name: words.num_embeddings for name, words in found.items()}
        if len(set(sizes.values())) > 1:
            raise ConfigError(
                f"the vocabularies have {sizes['source']} and {sizes['target']} tokens: resize one after the other,"
                " with half='source' and half='target'"
            )
        return found

    def _refuse_loss_of_special_tokens(self, names: Iterable[str], num_tokens: int) -> None:
        for field in (field for name in names for role in self._roles(name) for field in _SPECIAL_IDS[role]):
            token = getattr(self.config, field)
            if token is not None and token >= num_tokens:
                raise ConfigError(f"{field} is {token}: {num_tokens} tokens would lose it; keep at least {token + 1}")

    def _record_sizes(self, sizes: dict[str, int]) -> None:
        config = self.config
        was_one_size = config.encoder.vocab_size == config.decoder.vocab_size
        if "source" in sizes:
            config.encoder.vocab_size = sizes["source"]
        if "target" in sizes:
            config.decoder.vocab_size = sizes["target"]
        elif was_one_size and "target" not in self._vocabularies():
            config.decoder.vocab_size = sizes["source"]  # a model without decoder still describes one


def _resized_bias(bias_V: Tensor, num_tokens: int, *, as_mean: bool) -> Tensor:
    """The bias of more tokens, or of fewer; a new model's bias is 0."""
    new_V = torch.full_like(bias_V[:1], float(bias_V.float().mean()) if as_mean else 0.0).repeat(num_tokens)
    kept = min(num_tokens, bias_V.numel())
    new_V[:kept] = bias_V[:kept]
    return new_V
