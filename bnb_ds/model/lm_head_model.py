"""The model with its LM head: one forward pass, and the loss of the target that reads the slots.

Shapes: B sequences; padded: L source columns, T slots of the longest decoder sequence; packed: N source tokens and
sum T slots of all sequences together; H hidden size, V vocabulary, S target tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnb_ds.common.packing import PackedInputs, PackedLayout
from bnb_ds.ctc.greedy import linear_argmax, linear_entropies
from bnb_ds.dag.links import LinkNetwork
from bnb_ds.model.backbones.entries import backbone_of
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.layers import BnbLMHead, EarlyExit
from bnb_ds.model.length import length_scores
from bnb_ds.model.network import OPTIONAL_PARTS, OTHER_PARTS, BnbModel, BnbPreTrainedModel, Encoded
from bnb_ds.model.outputs import BnbOutput
from bnb_ds.model.slots import DecoderSlots, distinct_slots
from bnb_ds.model.target_rules import target_of
from bnb_ds.targets.glancing import Chances, check_chances, same_dropout, seen_by_mask_predict
from bnb_ds.targets.interface import ReadOptions, Scores, SlotStates, Targets, joined_states, read_targets
from bnb_ds.targets.token_target import TokenTarget


@dataclass(frozen=True, eq=False)
class Shown:
    """What the decoder sees of the targets in training.

    Attributes:
        slots: with the tokens that they hold.
        given: bool [sum T], slots whose input holds their target token; None: no slot.
        masked: bool [sum T], the slots that have a loss, with one token a slot; None: all of them.
        mixed: int64 [sum T], the token that the layers read instead of their prediction; -1: none. None: no slot.
    """

    slots: DecoderSlots
    given: Tensor | None = None
    masked: Tensor | None = None
    mixed: Tensor | None = None


class BnbLMHeadModel(BnbPreTrainedModel):
    """BERT-NAR-BERT with its LM head and its loss, that of the target which reads the slots (`bnb_ds.targets`).

    The output matrix is the parameter ``model.decoder.embeddings.word_embeddings.weight`` itself.
    """

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^links\.", *OTHER_PARTS, *OPTIONAL_PARTS]

    def __init__(self, config: BnbConfig):
        super().__init__(config)
        self.model = BnbModel(config)
        self.lm_head = BnbLMHead(config.decoder, has_transform=config.head_transform)
        self.target = target_of(config)
        self.links = None
        if config.target_kind == "dag":
            decoder = config.decoder
            heads, size = config.link_heads or decoder.num_attention_heads, backbone_of(decoder).word_size(decoder)
            self.links = LinkNetwork(size, heads, config.link_positions, decoder.initializer_range)
            embeddings: Any = self.links.positions  # torch declares that attributes of modules are tensors or modules
            embeddings.initializer_range = config.embedding_range
        self.post_init()

    def get_output_embeddings(self) -> nn.Embedding:
        """The decoder's word embeddings, which are the output matrix."""
        return self.model.decoder.embeddings.word_embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        label_lengths: Tensor | None = None,
        max_label_length: int | None = None,
        return_logits: bool | None = None,
        return_best: bool = False,
        glance_ratio: float | None = None,
        glance_draws: Tensor | None = None,
        mask_share: float = 0.0,
        mixed_ratio: float | None = None,
        mixed_draws: Tensor | None = None,
        ngram_size: int | None = None,
        masked: Tensor | None = None,
        rewrites: Tensor | None = None,
        decode: Callable[[BnbLMHeadModel, PackedInputs], Any] | None = None,
    ) -> BnbOutput:
        """Predict all target positions at once, and compute the loss of ``labels``.

        With ``deep_supervision``, the loss is the mean over the decoder's layers in training, else that of the last
        layer.

        Args:
            input_ids: int64 [B, L], or packed [N] with ``cu_seqlens``. A token's position is its index among the real
                tokens of its sequence.
            attention_mask: [B, L], not 0 at real tokens, which may be anywhere in a row; None: all tokens are real.
                Only for padded input.
            token_type_ids: int64, same shape as ``input_ids``; None: all 0.
            labels: int64 [B, S] with -100 at places without a target, or the targets concatenated [sum S] with
                ``label_lengths``.
            cu_seqlens: int32 [B+1], starts of the packed sequences, then N. On the CPU, with tokens on a GPU, the host
                never waits for the GPU.
            max_seqlen: tokens of the longest sequence; optional. With it the host waits only for the number of slots,
                if ``cu_seqlens`` is on a GPU.
            label_lengths: int64 [B], with concatenated labels; they too may be on the CPU.
            max_label_length: tokens of the longest target; optional. With it the host does not wait for a GPU, and
                labels and their lengths on a GPU are not checked. On a CPU everything is checked.
            return_logits: True: return logits beside the loss, which costs a second projection. None: return logits
                only without labels.
            return_best: return ``best`` of `BnbOutput` too. This does not hold the logits of all slots.
            glance_ratio: in training, with labels: the ratio of glancing (`bnb_ds.targets.glancing`); None: none.
            glance_draws: float32 [sum T], in [0, 1), a draw for each slot; with ``glance_ratio``.
            mask_share: with ``glance_ratio`` and one token a slot: the share of sequences of which mask-predict says
                how many tokens are seen (`bnb_ds.targets.glancing.seen_by_mask_predict`).
            masked: in training, with labels, one token a slot: bool [sum T], slots to predict; others hold their token.
            mixed_ratio: in training, with labels and ``deep_supervision``: the probability that a slot's token on the
                best path of the target replaces what a layer predicts for it, for the layer behind; None: 0.
            mixed_draws: float32 [sum T], in [0, 1), a draw for each slot and all its layers; with ``mixed_ratio``.
            ngram_size: the loss of a sequence is 1 minus its matches of n-grams of this size; None: its nats.
            rewrites: in training, with labels: int64 [P, sum T], what slots hold in P further passes; -1: what they
                wrote in the pass before. The loss is the mean of all passes. None: there are none.
            decode: called with the model and its inputs in the place of everything else; it gives ``decoded``.

        Raises:
            ValueError: shapes or lengths that do not fit together, or labels outside the vocabulary; with length
                classification, an empty target; a ratio out of [0, 1], or without a draw for each slot.
            ConfigError: a source or its decoder slots do not fit the position embeddings; or the input is packed, but
                ``decoder_length`` is ``"padded"``.
        """
        targets = None if labels is None else read_targets(labels, label_lengths, max_label_length)
        inputs = self.model.pack(input_ids, attention_mask, token_type_ids, cu_seqlens, max_seqlen)
        if decode is not None:
            return BnbOutput(decoded=decode(self, inputs))
        encoded = self.model.encode(inputs)
        slots = self._open(encoded, targets)
        chances = Chances((glance_ratio, glance_draws), (mixed_ratio, mixed_draws), mask_share)
        shown = self._show(encoded, slots, targets, chances, masked)
        result = _output_of(encoded, inputs, slots)
        several = self._states(encoded, shown, targets, rewrites)
        if targets is not None:
            self._add_scores(result, self._scores(several, targets, shown, ngram_size), encoded, targets)
        with_logits = return_logits or (targets is None and return_logits is None)
        self._add_outputs(result, several[-1], inputs, with_logits=with_logits, with_best=return_best)
        return result

    def states(
        self, encoded: Encoded, slots: DecoderSlots, exit_entropy: float | None = None, *, ends_early: bool = True
    ) -> SlotStates:
        """Decode slots, up to the projection to the vocabulary.

        Args:
            encoded: the sources.
            slots: with what their input holds.
            exit_entropy: nats of `bnb_ds.model.layers.EarlyExit`; None: no slot exits.
            ends_early: as in `bnb_ds.model.layers.BnbDecoder.forward`.
        """

        def predict(hidden_TH: Tensor) -> Tensor:
            return self._argmax(self.lm_head(hidden_TH))

        def entropies(hidden_TH: Tensor) -> Tensor:
            weight_VH = self.get_output_embeddings().weight
            return linear_entropies(self.lm_head(hidden_TH), weight_VH, self.lm_head.bias)

        early_exit = None if exit_entropy is None else EarlyExit(entropies, exit_entropy)
        hidden_TH = self.model.decode(encoded, slots, predict, early_exit=early_exit, ends_early=ends_early)
        return self._slot_states(self.lm_head(hidden_TH), encoded, slots)

    def _states(
        self, encoded: Encoded, shown: Shown, targets: Targets | None, rewrites_PT: Tensor | None
    ) -> list[SlotStates]:
        """All states that have a loss in training, else one."""
        if targets is None or not self.training:
            return [self.states(encoded, shown.slots)]
        if self.config.deep_supervision:
            return self._states_of_layers(encoded, shown)
        first = self.states(encoded, shown.slots)
        return [first] if rewrites_PT is None else self._states_of_passes(encoded, shown.slots, first, rewrites_PT)

    def _states_of_layers(self, encoded: Encoded, shown: Shown) -> list[SlotStates]:
        """`states` behind each layer of the decoder, for its loss. Layers read the tokens that are shown to them."""
        hidden = []

        def predict(hidden_TH: Tensor) -> Tensor:
            hidden.append(self.lm_head(hidden_TH))
            best_T = self._argmax(hidden[-1])
            return best_T if shown.mixed is None else torch.where(shown.mixed >= 0, shown.mixed, best_T)

        last_TH = self.model.decode(encoded, shown.slots, predict)
        return [self._slot_states(each_TH, encoded, shown.slots) for each_TH in (*hidden, self.lm_head(last_TH))]

    def _states_of_passes(
        self, encoded: Encoded, slots: DecoderSlots, first: SlotStates, rewrites_PT: Tensor
    ) -> list[SlotStates]:
        """`states` of all passes; further ones read the tokens of ``rewrites_PT`` and of the passes before."""
        assert slots.token_ids is not None, "further passes need decoder_tokens"
        passes = [first]
        for tokens_T in rewrites_PT:
            best_T = self._argmax(passes[-1].hidden)
            slots = replace(slots, token_ids=torch.where(tokens_T >= 0, tokens_T, best_T))
            passes.append(self.states(encoded, slots))
        return passes

    def _slot_states(self, hidden_TH: Tensor, encoded: Encoded, slots: DecoderSlots) -> SlotStates:
        links_BTT = None
        if self.links is not None:
            links_BTT = self.links(hidden_TH, slots.layout, None if slots.blocks is None else slots.blocks.furthest)
        weight_VH = self.get_output_embeddings().weight
        distinct_B = distinct_slots(slots.layout.lengths, encoded.layout.lengths, self.config)
        return SlotStates(hidden_TH, weight_VH, self.lm_head.bias, slots.layout, links_BTT, distinct_B, slots.blocks)

    @torch.no_grad()
    def _argmax(self, hidden_TH: Tensor) -> Tensor:
        return linear_argmax(hidden_TH, self.get_output_embeddings().weight, self.lm_head.bias)

    def _best(self, states: SlotStates) -> Tensor:
        if self.links is None:
            return self._argmax(states.hidden)
        ids_BT, _ = self.target.decode(states, ReadOptions(pad=-1))
        return states.layout.unpad(ids_BT)

    def _open(self, encoded: Encoded, targets: Targets | None) -> DecoderSlots:
        slots = self.model.open(encoded, None if targets is None else targets.known_lengths)
        if targets is not None and self.config.segment_blocks:
            return slots.in_blocks(targets.tokens, targets.lengths, self.config)
        return slots

    def _add_outputs(
        self, result: BnbOutput, states: SlotStates, inputs: PackedInputs, *, with_logits: bool, with_best: bool
    ) -> None:
        if with_logits:
            logits_TV = F.linear(states.hidden, states.weight, states.bias)
            result["logits"] = _in_form(logits_TV, inputs, states.layout)
        if with_best:
            result["best"] = _in_form(self._best(states), inputs, states.layout)

    @torch.no_grad()
    def _show(
        self,
        encoded: Encoded,
        slots: DecoderSlots,
        targets: Targets | None,
        chances: Chances,
        masked_T: Tensor | None,
    ) -> Shown:
        """What the decoder may see of the targets in training; a first pass may say it."""
        check_chances(
            chances, slots.layout.num_tokens, slots.token_ids is not None, isinstance(self.target, TokenTarget)
        )
        if targets is None or not self.training:
            return Shown(slots)
        if masked_T is not None:
            assert slots.token_ids is not None, "tokens are shown with decoder_tokens"
            tokens_T = torch.where(masked_T, slots.token_ids, targets.tokens)
            return Shown(replace(slots, token_ids=tokens_T), masked=masked_T)
        if chances.glance[0] is None and chances.mix[0] is None:
            return Shown(slots)
        with same_dropout(encoded.hidden.device):
            states = self.states(encoded, slots)
        oracle_T = self.target.align(states, targets)
        given_T = mixed_T = None
        (ratio, draws_T), (mixed_ratio, mixed_draws_T) = chances.glance, chances.mix
        if ratio is not None:
            assert slots.token_ids is not None
            assert draws_T is not None
            given_T = self.target.glanced(states, targets, oracle_T, ratio, draws_T)
            if chances.mask_share:
                given_T = seen_by_mask_predict(given_T, draws_T, chances.mask_share, slots.layout)
            tokens_T = torch.where(given_T, targets.at(oracle_T, slots.layout), slots.token_ids)
            slots = replace(slots, token_ids=tokens_T)
        if mixed_ratio is not None:
            assert mixed_draws_T is not None
            right_T = self.target.path_tokens(oracle_T, targets, slots.layout)
            mixed_T = torch.where(mixed_draws_T < mixed_ratio, right_T, -1)
        return Shown(slots, given_T, mixed=mixed_T)

    def _scores(self, several: list[SlotStates], targets: Targets, shown: Shown, ngram_size: int | None) -> Scores:
        """The mean over layers or passes, from one call: the slots of each are sequences of their own there."""
        states, given_T, times = several[-1], shown.given, len(several)
        if shown.masked is not None:
            assert isinstance(self.target, TokenTarget), "tokens are masked with one token a slot"
            return self.target.masked_scores(states, targets, shown.masked)
        if times > 1:
            states, targets = joined_states(several), targets.repeat(times)
            given_T = None if given_T is None else given_T.repeat(times)
        if ngram_size is not None:
            return self.target.ngram_scores(states, targets, ngram_size).mean_of(times)
        return self.target.scores(states, targets, given_T).mean_of(times)

    def _add_scores(self, result: BnbOutput, scores: Scores, encoded: Encoded, targets: Targets) -> None:
        loss_sum, count = scores.loss_sum, scores.count
        if self.model.length_predictor is not None:
            assert encoded.length_logits is not None
            length_sum, result["length_loss"] = length_scores(
                self.model.length_predictor,
                encoded.length_logits,
                encoded.layout.lengths,
                targets,
                scores.weights,
            )
            loss_sum = loss_sum + self.config.length_loss_weight * length_sum
        result["loss_sum"], result["loss_count"], result["kl"] = loss_sum, count, scores.kl
        result["num_infeasible"] = scores.num_infeasible
        result["loss"] = loss_sum / count.clamp(min=1)


def _output_of(encoded: Encoded, inputs: PackedInputs, slots: DecoderSlots) -> BnbOutput:
    """What is known before the slots are decoded."""
    return BnbOutput(
        latent=inputs.restore(encoded.latent),
        decoder_lengths=slots.layout.lengths,
        encoder_last_hidden_state=inputs.restore(encoded.hidden),
    )


def _in_form(values_T: Tensor, inputs: PackedInputs, layout: PackedLayout) -> Tensor:
    """Values of slots, [sum T, ...], packed or padded as the inputs are."""
    return values_T if inputs.is_packed else layout.pad(values_T)
