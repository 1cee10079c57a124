"""Words that no output may hold, however the pieces of the vocabulary spell them.

An automaton reads the text of an output character by character, piece by piece. Its text is a row of *atoms*: runs of
letters and digits, and single marks. A bad word is a row of atoms too. Spaces beside marks do not count, because an
output is written with or without them. An accent counts as a character of its own, because it can be encoded as one. A
state says how far the text has gone into each bad word.

Shapes: B sequences, W prefixes of a beam, K classes of a slot, V vocabulary.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bnb_ds.errors import ConfigError

_DEAD = -1  # the text holds a bad word
_NOT_KNOWN = -2
_MOST_ROWS = 1024  # states whose ways on are kept in a table
_MOST_WAYS = 1 << 20

_CHINESE = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))

#: a bad word, one of its atoms, and the characters of that atom that the text has; at 0 the atom may begin
_Item = tuple[int, int, int]
#: where a text ends: outside a run of letters, within one, or behind a word that may be joined to the next one
_OUTSIDE, _IN_RUN, _OPEN_END = range(3)
#: items, and where the text ends
_Reading = tuple[frozenset[_Item], int]
_START: _Reading = (frozenset(), _OUTSIDE)


class BadWords:
    """What may follow a text that holds no bad word.

    Args:
        words: the bad words.
        pieces: the piece of each id; ``##`` continues a word, and an empty one writes nothing.
        special_ids: ids that write nothing.
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
        pieces: Sequence[str],
        special_ids: Iterable[int],
        *,
        unknown_id: int | None = None,
        unknown_texts: Iterable[str] = (),
        joins: Callable[[str], bool] = lambda piece: False,
        normalize: Callable[[str], str] = str,
        inside: bool = False,
        any_case: bool = False,
    ):
        silent = set(special_ids) - {unknown_id} | {number for number, piece in enumerate(pieces) if not piece}
        if not silent:
            raise ConfigError("bad words need a vocabulary with special tokens, such as [SEP]: leave them out")
        self.silent_id = min(silent)
        self._unknown_id = unknown_id
        self._unknown_texts = [_written(text, any_case) for text in unknown_texts]
        self._inside = inside
        #: text of a piece, and whether a word begins with it; None: it writes nothing
        self._parts: list[tuple[str, bool] | None] = []
        for number, piece in enumerate(pieces):
            continues = piece.startswith("##") and len(piece) > 2
            text = piece[2:] if continues else piece
            self._parts.append(None if number in silent else (_written(text, any_case), not continues))
        texts = {part[0] for number, part in enumerate(self._parts) if part is not None and number != unknown_id}
        texts.update(self._unknown_texts)
        self._joining = {
            number for number, part in enumerate(self._parts) if part and part[1] and joins(pieces[number])
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
            if all(self._can_spell(atom, texts) for atom in atoms):
                self._words.append(atoms)
            else:
                self.unwritable.append(word)
        self._states: list[frozenset[_Reading]] = [frozenset({_START})]
        self._number_of = {self._states[0]: 0}
        self._ways: dict[tuple[int, int], int] = {}
        self._table_SV = torch.full((1, len(pieces)), _NOT_KNOWN, dtype=torch.int32)

    @classmethod
    def of(cls, words: Iterable[str], tokenizer: Any, vocab_size: int, **how: Any) -> BadWords:
        """For outputs of a tokenizer, which normalises the words too. ``how`` is what else `BadWords` takes.

        Raises:
            ConfigError: it has no WordPiece vocabulary, or as above.
        """
        kind = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["type"]
        if kind != "WordPiece":
            raise ConfigError(f"bad words need a WordPiece vocabulary, and this tokenizer has {kind}: leave them out")
        normalizer = tokenizer.backend_tokenizer.normalizer
        pieces = [piece or "" for piece in tokenizer.convert_ids_to_tokens(list(range(vocab_size)))]
        special, unknown = tokenizer.all_special_ids, tokenizer.unk_token_id
        return cls(
            words,
            pieces,
            special,
            unknown_id=unknown,
            normalize=str if normalizer is None else normalizer.normalize_str,
            **how,
        )

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
        return state != _DEAD and all(self._closed(reading) is not None for reading in self._states[state])

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
        num_rows = min(len(self._states), _MOST_ROWS)
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

    def _after(self, readings: frozenset[_Reading], token: int) -> int:
        part = self._parts[token] if token < len(self._parts) else None
        if part is None:
            return self._number_of[readings]
        following: set[_Reading | None] = set()
        for reading in readings:
            if token == self._unknown_id:
                # Depending on how outputs become text, [UNK] is left out or stands as a word of its own.
                following |= {reading, _START if self._closed(reading) else None, *self._with_unknown(reading)}
            else:
                following |= self._readings(reading, token, *part)
        if None in following:
            return _DEAD
        state = frozenset(reading for reading in following if reading is not None)
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
            if _is_letter(character):
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
        if _is_letter(character):
            run += character
            continue
        if run:
            yield run
        run = ""
        if not character.isspace():
            yield character
    if run:
        yield run


def _is_letter(character: str) -> bool:
    """Whether a character is part of a run. As for BERT, marks, symbols and Chinese characters stand alone."""
    if unicodedata.category(character)[0] in "PSZC":
        return False
    return not any(first <= ord(character) <= last for first, last in _CHINESE)
