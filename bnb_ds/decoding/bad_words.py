"""Words that no output may hold, however the pieces of the vocabulary spell them.

An automaton reads the text of an output character by character, piece by piece. Its text is a row of *atoms*: runs of
letters and digits, and single marks. A bad word is a row of atoms too. Spaces beside marks do not count, because an
output is written with or without them. An accent counts as a character of its own, because it can be encoded as one. A
state says how far the text has gone into each bad word.

Shapes: B sequences, W prefixes of a beam, K classes of a slot, V vocabulary.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bnb_ds.data.subwords.characters import healed, is_letter, spaced, split_at_open_bytes
from bnb_ds.data.subwords.rules import PieceRules, piece_rules
from bnb_ds.errors import ConfigError

_DEAD = -1  # the text holds a bad word
_NOT_KNOWN = -2
# States whose ways on are kept in a table, which has 128 MB at most.
_MOST_ROWS = 1024
_MOST_CELLS = 1 << 25
_MOST_WAYS = 1 << 20

#: a bad word, one of its atoms, and the characters of that atom that the text has; at 0 the atom may begin
_Item = tuple[int, int, int]
#: where a text ends: outside a run of letters, within one, or behind a word that may be joined to the next one
_OUTSIDE, _IN_RUN, _OPEN_END = range(3)
#: items, and where the text ends
_Reading = tuple[frozenset[_Item], int]
_START: _Reading = (frozenset(), _OUTSIDE)
_State = tuple[frozenset[_Reading], str]


class BadWords:
    """What may follow a text that holds no bad word.

    Args:
        words: the bad words.
        rules: what each id writes.
        unknown_id: the id of [UNK], which stands for a word that is not known; None: there is none.
        unknown_texts: what [UNK] may become in the text, beside nothing.
        joins: whether a piece that is a word may be written without spaces beside it, though it is no mark.
        normalize: makes a bad word what the tokenizer makes of it, lower case for example.
        inside: also refuse the words inside longer ones.
        any_case: refuse them in upper and lower case alike.

    Attributes:
        unwritable: those of the words that the vocabulary cannot spell.
        silent_id: an id that writes nothing, so it may stand anywhere.

    Raises:
        ConfigError: a word without letters or marks, or with half a character, or a vocabulary in which every token
            writes something.
    """

    def __init__(
        self,
        words: Iterable[str],
        rules: PieceRules,
        *,
        unknown_id: int | None = None,
        unknown_texts: Iterable[str] = (),
        joins: Callable[[str], bool] = lambda piece: False,
        normalize: Callable[[str], str] = str,
        inside: bool = False,
        any_case: bool = False,
    ):
        silent = {number for number, text in enumerate(rules.texts) if not text and number != unknown_id}
        if not silent:
            raise ConfigError("bad words need a vocabulary with special tokens, such as [SEP]: leave them out")
        self.silent_id = min(silent)
        self._unknown_id = unknown_id
        self._unknown_texts = [_written(text, any_case) for text in unknown_texts]
        self._inside = inside
        self._any_case = any_case
        #: text of a piece, and whether a word begins with it; None: it writes nothing
        self._parts: list[tuple[str, bool] | None] = [
            None if number in silent else (text or "", rules.begins_word(number))
            for number, text in enumerate(rules.texts)
        ]
        texts = {
            _written(atom, any_case)
            for number, part in enumerate(self._parts)
            if part is not None and number != unknown_id
            for atom in ([part[0]] if rules.family == "wordpiece" else _atoms(part[0]))
        }
        texts.update(self._unknown_texts)
        self._joining = {
            number for number, part in enumerate(self._parts) if part and part[1] and joins(rules.pieces[number])
        }
        self._words: list[tuple[str, ...]] = []
        self.unwritable: list[str] = []
        for word in words:
            try:
                word.encode("utf-8")
            except UnicodeEncodeError:
                raise ConfigError(f"bad word {word!r}: holds half of a character: give it in UTF-8") from None
            atoms = tuple(_atoms(_written(normalize(word), any_case)))
            if not atoms:
                raise ConfigError(f"bad word {word!r}: give at least one letter or mark")
            if rules.writes_bytes or all(self._can_spell(atom, texts) for atom in atoms):
                self._words.append(atoms)
            else:
                self.unwritable.append(word)
        #: what a text is read as, and the bytes of an unfinished character at its end
        self._states: list[_State] = [(frozenset({_START}), "")]
        self._number_of = {self._states[0]: 0}
        self._ways: dict[tuple[int, int], int] = {}
        self._table_SV = torch.full((1, len(rules.pieces)), _NOT_KNOWN, dtype=torch.int32)

    @classmethod
    def of(cls, words: Iterable[str], tokenizer: Any, vocab_size: int, **how: Any) -> BadWords:
        """For outputs of a tokenizer, which normalises the words too. ``how`` is what else `BadWords` takes.

        Raises:
            ConfigError: as above.
        """
        rules = piece_rules(tokenizer, vocab_size)
        normalizer = tokenizer.backend_tokenizer.normalizer
        normalize: Callable[[str], str] = str if normalizer is None else normalizer.normalize_str

        def as_written(word: str) -> str:
            # The normalizer of SentencePiece may write spaces as the pieces do.
            return spaced(normalize(word)) if rules.family == "metaspace" else normalize(word)

        return cls(words, rules, unknown_id=tokenizer.unk_token_id, normalize=as_written, **how)

    def __bool__(self) -> bool:
        """Whether there is a word to look for."""
        return bool(self._words)

    def after(self, state: int, token: int) -> int:
        """The state after one more token; -1: the text holds a bad word. The state of the empty text is 0."""
        following = self._ways.get((state, token))
        if following is None:
            if len(self._ways) >= _MOST_WAYS:
                self._ways.clear()
            following = self._ways[state, token] = self._after(self._states[state], token)
        return following

    def may_end(self, state: int) -> bool:
        """Whether the text may end here; its last word may be a bad one that is not yet seen to be whole."""
        return state != _DEAD and all(self._closed(reading) is not None for reading in self._states[state][0])

    def allow(self, tokens: Sequence[int]) -> bool:
        """Whether an output holds no bad word."""
        return self.longest(tokens) == len(tokens)

    def longest(self, tokens: Sequence[int]) -> int:
        """How many tokens at the beginning of an output hold no bad word, at most."""
        state = longest = 0
        for number, token in enumerate(tokens, 1):
            state = self.after(state, token)
            if state == _DEAD:
                break
            if self.may_end(state):
                longest = number
        return longest

    def after_all(self, states_BW: Tensor, ids_BK: Tensor) -> Tensor:
        """`after` for each class behind each prefix, int64 [B, W, K]."""
        self._table_SV = self._table_SV.to(ids_BK.device)
        states_BWK, ids_BWK = torch.broadcast_tensors(states_BW[..., None], ids_BK[:, None])
        most = max(min(_MOST_ROWS, _MOST_CELLS // self._table_SV.shape[1]), 1)
        num_rows = min(len(self._states), most)
        if num_rows > self._table_SV.shape[0]:
            new = self._table_SV.new_full((num_rows - self._table_SV.shape[0], self._table_SV.shape[1]), _NOT_KNOWN)
            self._table_SV = torch.cat((self._table_SV, new))
        is_kept_BWK = states_BWK < num_rows
        found_BWK = self._table_SV[states_BWK.clamp(max=num_rows - 1), ids_BWK].long()
        is_missing_BWK = (found_BWK == _NOT_KNOWN) | ~is_kept_BWK
        if is_missing_BWK.any():
            states_M, ids_M = states_BWK[is_missing_BWK], ids_BWK[is_missing_BWK]
            values = [self.after(*pair) for pair in zip(states_M.tolist(), ids_M.tolist(), strict=True)]
            values_M = torch.tensor(values, device=ids_BK.device)
            found_BWK[is_missing_BWK] = values_M
            is_kept_M = is_kept_BWK[is_missing_BWK]
            self._table_SV[states_M[is_kept_M], ids_M[is_kept_M]] = values_M[is_kept_M].int()
        return found_BWK

    def _after(self, state: _State, token: int) -> int:
        part = self._parts[token] if token < len(self._parts) else None
        if part is None:
            return self._number_of[state]
        readings, open_bytes = state
        text, open_bytes = split_at_open_bytes(healed(open_bytes + part[0]))
        text = _written(text, self._any_case)
        following: set[_Reading | None] = set()
        for reading in readings:
            if token == self._unknown_id:
                # Depending on how outputs become text, [UNK] is left out or stands as a word of its own.
                following |= {reading, _START if self._closed(reading) else None, *self._with_unknown(reading)}
            else:
                following |= self._readings(reading, token, text, part[1])
        if None in following:
            return _DEAD
        state = frozenset(reading for reading in following if reading is not None), open_bytes
        if state not in self._number_of:
            self._number_of[state] = len(self._states)
            self._states.append(state)
        return self._number_of[state]

    def _read(self, reading: _Reading, text: str, begins_word: bool) -> _Reading | None:
        """The reading after the text of a piece; None: it holds a bad word."""
        following: _Reading | None = self._closed(reading) if begins_word else reading
        for character in text:
            if following is None:
                return None
            if is_letter(character):
                following = self._with_letter(*following, character)
            elif character.isspace():  # within an added token
                following = self._closed(following)
            else:
                closed = self._closed(following)
                following = None if closed is None else self._with_mark(closed[0], character)
        return following

    def _readings(self, reading: _Reading, token: int, text: str, begins_word: bool) -> set[_Reading | None]:
        is_joining = token in self._joining
        ways = {begins_word, begins_word and not (is_joining or reading[1] == _OPEN_END)}
        found = {self._read(reading, text, way) for way in ways}
        if not is_joining:
            return found
        return {one and (one[0], _OPEN_END if one[1] else _OUTSIDE) for one in found}

    def _with_unknown(self, reading: _Reading) -> Iterator[_Reading | None]:
        """The readings after [UNK], if it becomes a text: joined to what stands beside it or not."""
        for text in self._unknown_texts:
            for begins_word in (True, False):
                after = self._read(reading, text, begins_word)
                yield after
                yield after and self._closed(after)

    def _closed(self, reading: _Reading) -> _Reading | None:
        """The reading after the end of a run of letters; None: it ended in a bad word."""
        items, end = reading
        if end == _OUTSIDE:
            return reading
        whole = [(word, atom) for word, atom, count in items if count == len(self._words[word][atom])]
        if any(atom + 1 == len(self._words[word]) for word, atom in whole):
            return None
        return frozenset((word, atom + 1, 0) for word, atom in whole), _OUTSIDE

    def _with_letter(self, items: frozenset[_Item], end: int, character: str) -> _Reading | None:
        if self._inside or end == _OUTSIDE:
            items |= {(word, 0, 0) for word in range(len(self._words))}
        following = {
            (word, atom, count + 1)
            for word, atom, count in items
            if self._words[word][atom][count : count + 1] == character
        }
        if self._inside:
            for word, atom, count in following:
                if atom + 1 == len(self._words[word]) and count == len(self._words[word][atom]):
                    return None
        return frozenset(following), _IN_RUN

    def _with_mark(self, items: frozenset[_Item], mark: str) -> _Reading | None:
        waiting = items | {(word, 0, 0) for word in range(len(self._words))}
        met = [(word, atom) for word, atom, _ in waiting if self._words[word][atom] == mark]
        if any(atom + 1 == len(self._words[word]) for word, atom in met):
            return None
        return frozenset((word, atom + 1, 0) for word, atom in met), _OUTSIDE

    def _can_spell(self, atom: str, texts: set[str]) -> bool:
        """Whether pieces with these texts can write an atom. Inside longer words they may reach beyond its ends."""
        size, inside = len(atom), self._inside
        if inside and any(atom in text for text in texts):
            return True
        reached = {0}
        if inside:
            reached |= {end for end in range(1, size) if any(text.endswith(atom[:end]) for text in texts)}
        for begin in range(size):
            if begin in reached:
                reached |= {end for end in range(begin + 1, size + 1) if atom[begin:end] in texts}
                if inside and any(text.startswith(atom[begin:]) for text in texts):
                    return True
        return size in reached


def _written(text: str, any_case: bool) -> str:
    """A text as it is compared: one form for accents in all encodings, and for both cases if so asked."""
    return unicodedata.normalize("NFD", text.lower() if any_case else text)


def _atoms(text: str) -> Iterator[str]:
    """Runs of letters and digits, and single marks; spaces lie between them."""
    run = ""
    for character in text:
        if is_letter(character):
            run += character
            continue
        if run:
            yield run
        run = ""
        if not character.isspace():
            yield character
    if run:
        yield run
