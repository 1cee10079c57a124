"""All settings of decoding: how an output is chosen from the decoder's predictions."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any

from bnb_ds.dag.beam_search import BeamOptions
from bnb_ds.dag.strategies import DagOptions
from bnb_ds.decoding.bad_words import BadWords
from bnb_ds.decoding.ngram_lm import NgramLm, TextScores
from bnb_ds.errors import ConfigError, nearest
from bnb_ds.model.configuration import BnbConfig

#: number of prefixes in a search that is needed only to keep a limit, with ``beam_size`` 1
CONSTRAINT_BEAM = 8
#: a beam beyond any use, whose memory would end the process
_WIDEST_BEAM = 1 << 16


@dataclass(frozen=True)
class DecodeOptions:
    """Settings of decoding. Lengths are in tokens of the output, including the first and the last special token.

    With CTC, ``beam_size`` 1 is greedy decoding: take the best token of each slot, merge repeats, drop blanks. If a
    greedy output breaks ``min_length``, ``max_length`` or ``no_repeat_ngram_size``, or holds a bad word, its source is
    searched with `CONSTRAINT_BEAM` prefixes instead.

    Attributes:
        beam_size: number of prefixes of the CTC prefix beam search; 1: greedy.
        blank_penalty: nats by which the logit of the CTC blank is lowered in every slot, in all of these ways; above 0
            outputs are longer. A CTC model whose sources have several right outputs writes too short ones.
        beam_classes: number of best classes of each slot that the search considers, in addition to the blank.
        length_beam: number of lengths tried for each source, with length classification; where fewer are possible, all
            of them. The length with the highest mean log-probability of its tokens wins.
        min_length: fewest tokens of an output. An output never has more tokens than decoder slots, so with fewer slots
            it has as many tokens as fit.
        max_length: most tokens of an output; None: as many as there are slots.
        no_repeat_ngram_size: no n-gram of this many tokens occurs twice in an output; 0: no such limit. For CTC and
            graphs.
        bad_words_ids: token sequences that no output holds. Sequences of several tokens need CTC or a graph.
        bad_words: words that no output holds, however they are spelled; None: no such words.
        lm: an n-gram language model for the search; it needs ``beam_size`` above 1, or ``strategy`` ``beam``.
        lm_weight: factor on its natural log-probabilities.
        word_bonus: nats added for every word, because the language model favours short outputs.
        strategy: how a path through a graph of slots is chosen (`bnb_ds.dag.strategies.DagOptions`); None: ``beam``
            with ``beam_size`` above 1, else ``lookahead``. Only for models with target ``dag``. Of the limits above,
            ``viterbi``, ``joint_viterbi`` and ``beam`` keep lengths. Outputs of other strategies that break a rule on
            words or n-grams are searched again by ``beam``.
        lookahead_beta: with ``lookahead``, the weight of the next slot's best token.
        length_penalty: with ``viterbi``, ``joint_viterbi`` and ``beam``, the power of the length that divides the
            log-probability of a path; more favours longer outputs.
        temperature, top_p: of ``sample`` (`bnb_ds.dag.strategies.DagOptions`).
        seed: of ``sample``. What is drawn depends on it and on the source, and on nothing else that is decoded.
        merge_duplicates: with a graph, equal tokens that stand side by side become one.
        refinement: passes of the decoder behind the first one, for models with ``decoder_tokens``. In each, slots see
            their tokens of the passes before, but for the least probable ones (`bnb_ds.decoding.refinement`). With CTC
            all slots are then predicted anew, with one token a slot those that saw none. A model whose
            ``refined_tokens`` is ``"all"`` predicts all tokens anew, until those of a source no longer change.
        exit_entropy: with ``deep_supervision``, a slot keeps its state behind the first layer whose prediction has an
            entropy below this, in nats (`bnb_ds.model.layers.EarlyExit`); None: no slot does.
        ends_early: further passes and layers that cannot change an output are left out. The outputs do not depend on
            it; with partitioned weights all ranks must run the same ones.
        token_budget: source tokens and decoder slots of one batch, together; a slot counts once for each hypothesis
            of a beam. None: 4,096 on a CPU, 65,536 on a GPU. The outputs do not depend on it.
    """

    beam_size: int = 1
    blank_penalty: float = 0.0
    beam_classes: int = 16
    length_beam: int = 1
    min_length: int = 0
    max_length: int | None = None
    no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] = ()
    bad_words: BadWords | None = None
    lm: NgramLm | None = None
    lm_weight: float = 0.5
    word_bonus: float = 0.0
    strategy: str | None = None
    lookahead_beta: float = 1.0
    length_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    merge_duplicates: bool = True
    refinement: int = 0
    exit_entropy: float | None = None
    ends_early: bool = True
    token_budget: int | None = None

    def __post_init__(self) -> None:
        # Tuples can be compared and hashed, so requests with equal options can be decoded together.
        try:
            object.__setattr__(self, "bad_words_ids", tuple(tuple(words) for words in self.bad_words_ids))
        except TypeError:
            raise ConfigError(f"bad_words_ids is {self.bad_words_ids!r}: give a list of lists of token ids") from None

    @classmethod
    def of_model(cls, config: BnbConfig) -> DecodeOptions:
        """The defaults of a model."""
        return cls.of(None, config.decoding)

    @classmethod
    def of(cls, base: DecodeOptions | None, changes: dict[str, Any]) -> DecodeOptions:
        """``base``, or the defaults of all models, with some fields replaced.

        Raises:
            ConfigError: an unknown field.
        """
        known = [field.name for field in fields(cls)]
        for name in changes:
            if name not in known:
                raise ConfigError(f"generate has no setting {name!r}; {nearest(name, known)}")
        return replace(base or cls(), **changes)

    @property
    def num_hypotheses(self) -> int:
        """Outputs that are followed for each source, but for searches of greedy outputs that break a limit."""
        beam_size = BeamOptions().beam_size if self.strategy == "beam" and self.beam_size == 1 else self.beam_size
        return max(beam_size, self.length_beam)

    @property
    def has_limits(self) -> bool:
        """Whether a greedy CTC output may have to be searched again."""
        limits = (self.min_length, self.max_length, self.no_repeat_ngram_size, self.banned_sequences, self.bad_words)
        return any(limits)

    @property
    def has_rules(self) -> bool:
        """Whether some words or n-grams are shut out that a path through a graph may yet write."""
        return bool(self.no_repeat_ngram_size or self.banned_sequences or self.bad_words)

    @property
    def banned_tokens(self) -> list[int]:
        """The tokens of all bad words of one token."""
        return sorted({words[0] for words in self.bad_words_ids if len(words) == 1})

    @property
    def banned_sequences(self) -> list[tuple[int, ...]]:
        """Bad words of several tokens."""
        return [tuple(words) for words in self.bad_words_ids if len(words) > 1]

    def dag_options(self) -> DagOptions:
        """What a graph of slots reads of these settings.

        Raises:
            ConfigError: a value out of range, or limits that the strategy does not keep.
        """
        strategy = self.strategy
        if strategy is None:
            strategy = "beam" if self.beam_size > 1 else "lookahead"
        beam = BeamOptions() if self.beam_size == 1 else BeamOptions(self.beam_size, self.beam_classes)
        beam = replace(
            beam,
            rule=self.bad_words or None,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            banned_sequences=tuple(self.banned_sequences),
        )
        if self.lm is not None:
            # A memory of texts of its own for each batch.
            heard = TextScores(self.lm, self.lm_weight, self.word_bonus)
            beam = replace(beam, lm=heard, lm_end=heard.end, lm_weight=1.0)
        try:
            return DagOptions(
                strategy,
                self.lookahead_beta,
                self.length_penalty,
                self.merge_duplicates,
                self.min_length,
                self.max_length,
                beam,
                self.temperature,
                self.top_p,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def check(self, config: BnbConfig) -> None:
        """Raise ConfigError for a value out of range, or for a value that does not fit the model."""
        for name in ("beam_size", "beam_classes", "length_beam"):
            _require(name, getattr(self, name), 1, below=_WIDEST_BEAM)
        for name in ("min_length", "no_repeat_ngram_size", "refinement"):
            _require(name, getattr(self, name), 0)
        _require("seed", self.seed, 0, below=1 << 63)
        if self.max_length is not None:
            _require("max_length", self.max_length, max(self.min_length, 1))
        if self.token_budget is not None:
            _require("token_budget", self.token_budget, 1)
        for name in (
            "blank_penalty",
            "lm_weight",
            "word_bonus",
            "lookahead_beta",
            "length_penalty",
            "temperature",
            "top_p",
        ):
            value = getattr(self, name)
            # In this form the comparison also refuses a NaN, and a whole number that is no float.
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
                raise ConfigError(f"{name} is {value!r}: give a finite number")
        if not isinstance(self.merge_duplicates, bool):
            raise ConfigError(f"merge_duplicates is {self.merge_duplicates!r}: give true or false")
        if self.lm is not None and self.beam_size == 1 and self.strategy != "beam":
            raise ConfigError("lm is used only in the beam search: give beam_size above 1")
        if not isinstance(self.lm, NgramLm | None):
            raise ConfigError(f"lm is of type {type(self.lm).__name__}: give a bnb_ds.decoding.ngram_lm.NgramLm")
        if self.lm is None and (self.lm_weight, self.word_bonus) != (DecodeOptions.lm_weight, DecodeOptions.word_bonus):
            raise ConfigError("lm_weight and word_bonus belong to a language model: give lm too, or leave them out")
        if self.strategy != "sample" and (self.temperature, self.top_p, self.seed) != (1.0, 1.0, 0):
            raise ConfigError("temperature, top_p and seed belong to strategy 'sample': give it, or leave them out")
        if self.blank_penalty and config.target_kind != "ctc":
            raise ConfigError(
                f"blank_penalty is {self.blank_penalty}: only slots of target 'ctc' may stay blank; leave it out"
            )
        self._check_bad_words(config)
        self._check_refinement(config)
        self._check_exits(config)
        self._check_graph(config)
        if config.target_kind == "token":
            self._check_length_classification()
        elif self.length_beam > 1:
            raise ConfigError(
                f"length_beam is {self.length_beam}: give at least 1, and more than 1 only to a model with "
                "decoder_length 'predicted'; with CTC use beam_size"
            )

    def _check_bad_words(self, config: BnbConfig) -> None:
        for words in self.bad_words_ids:
            if not words or not all(isinstance(token, Integral) and 0 <= token < config.vocab_size for token in words):
                raise ConfigError(
                    f"bad_words_ids holds {list(words)}: give one or more ids of 0 to {config.vocab_size - 1}"
                )
            if config.target_kind == "ctc" and config.blank_token_id in words:
                raise ConfigError(
                    f"bad_words_ids holds {list(words)}, and {config.blank_token_id} is the CTC blank, which is never "
                    "written: leave it out"
                )

    def _check_refinement(self, config: BnbConfig) -> None:
        if not self.refinement:
            return
        if config.target_kind == "dag":
            raise ConfigError(
                f"refinement is {self.refinement}: a graph of slots is decoded in one pass; leave it out with target "
                "'dag'"
            )
        if not config.has_decoder:
            raise ConfigError(
                f"refinement is {self.refinement}: its passes would hide the source, which the slots of a model without"
                " a decoder hold; leave it out"
            )
        if not config.decoder_tokens:
            raise ConfigError(
                f"refinement is {self.refinement}: its passes show tokens to the decoder, and this model was made "
                "without decoder_tokens; leave it out, or fine-tune the model with model.checkpoint, "
                "model.decoder_tokens true and glancing"
            )

    def _check_exits(self, config: BnbConfig) -> None:
        entropy = self.exit_entropy
        if entropy is None:
            return
        # In this form the comparison also refuses a NaN.
        if isinstance(entropy, bool) or not isinstance(entropy, int | float) or not 0 <= entropy < math.inf:
            raise ConfigError(f"exit_entropy is {entropy!r}: give a number of nats of at least 0")
        if not config.deep_supervision:
            raise ConfigError(
                f"exit_entropy is {entropy}: only models with deep_supervision predict behind every layer; leave it out"
            )

    def _check_graph(self, config: BnbConfig) -> None:
        if config.target_kind != "dag":
            if self.strategy is not None:
                raise ConfigError(
                    f"strategy is {self.strategy!r}, but the model's target is {config.target_kind!r}: leave it out, or"
                    " make a graph of this model: fine-tune it with model.checkpoint and model.target dag"
                )
            for name in ("lookahead_beta", "length_penalty", "merge_duplicates"):
                value = getattr(self, name)
                if value != getattr(DecodeOptions, name):
                    raise ConfigError(
                        f"{name} is {value}: it chooses a path through a graph of slots, and the model's target is "
                        f"{config.target_kind!r}; leave it out"
                    )
            return
        if self.beam_size > 1 and self.strategy not in (None, "beam"):
            raise ConfigError(
                f"beam_size is {self.beam_size}, but strategy is {self.strategy!r}: leave one of them out"
            )
        self.dag_options()

    def _check_length_classification(self) -> None:
        if self.beam_size > 1:
            raise ConfigError(
                f"beam_size is {self.beam_size}: the prefix beam search needs CTC; with decoder_length 'predicted' use "
                "length_beam"
            )
        if self.no_repeat_ngram_size or self.banned_sequences:
            raise ConfigError(
                "no_repeat_ngram_size, and bad words of several tokens, need CTC or a graph: leave them out with "
                "decoder_length 'predicted'"
            )


def _require(name: str, value: int, minimum: int, *, below: int = 1 << 31) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{name} is {value!r}: give a whole number of at least {minimum}")
    if value >= below:
        raise ConfigError(f"{name} is {value}: give a whole number below {below}")
