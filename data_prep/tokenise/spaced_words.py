"""The dictionary of words for byte-level BPE and SentencePiece tokenizers, whose words hold the space before them.

A text is cut before every space (U+0020) that follows a character which is no white space. Pre-tokenizers of these
families cut there too, whatever follows: none of their words goes on over a space. So the ids of a text are the ids of
its words, one after the other. A run of spaces, and whatever white space stands in it, stays in one word.

:func:`cuts_at_spaces` says of which tokenizers this is true. It knows parts of tokenizers by name, and takes no other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from data_prep.tokenise.words import WordEngine

#: they change characters, one by one or together with marks behind them; the deleting ones may also leave one out, or
#: put a space in its place
_DELETING = frozenset(("StripAccents", "Nmt", "Precompiled"))
_NORMALIZERS = frozenset(("NFC", "NFD", "NFKC", "NFKD", "Lowercase")) | _DELETING
_PRE_TOKENIZERS = frozenset(("WhitespaceSplit", "Digits", "Punctuation"))
_RUN_OF_SPACES = " {2,}"

# A character before a space, by its bytes: ASCII that can be seen; two bytes, but not those from U+0080 to U+00BF;
# three bytes, but not the blocks that hold white space. Others may be white space: then the text is not cut.
_IS_SEEN = np.zeros(256, dtype=bool)
_IS_SEEN[0x21:0x7F] = True
_IS_SECOND = np.zeros(256, dtype=bool)
_IS_SECOND[0x80:0xC0] = True
_LEADS_TWO = np.zeros(256, dtype=bool)
_LEADS_TWO[0xC3:0xE0] = True
_LEADS_THREE = np.zeros(256, dtype=bool)
_LEADS_THREE[[0xE0, *range(0xE4, 0xF0)]] = True


class SpacedWordEngine(WordEngine):
    """Encodes texts through a dictionary of words; equal, id for id, to encoding the texts whole.

    Args:
        backend: a tokenizer that does not look for special tokens.

    Raises:
        ValueError: :func:`cuts_at_spaces` is not true of it.
    """

    def __init__(self, backend: Tokenizer) -> None:
        state = json.loads(backend.to_str())
        if not cuts_at_spaces(state):
            raise ValueError("the tokenizer may join words over a space")
        self._backend = backend
        self._encode_plain = _nothing
        # A deleted character joins the white space on both sides of it. That matters where white space becomes tokens.
        deletes = any(part["type"] in _DELETING for part in _parts(state["normalizer"], "normalizers"))
        splitters = _parts(state["pre_tokenizer"], "pretokenizers")
        self._only_ascii = deletes and all(part["type"] != "WhitespaceSplit" for part in splitters)
        self._clear()

    def _cut(self, data: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        begins = np.zeros(len(data), dtype=bool)
        places = np.flatnonzero(data == 0x20)
        # Before the first bytes lies nothing; these values stand for the end of a text before it.
        before = np.concatenate([np.full(3, 0x0A, dtype=np.uint8), data])
        first, second, third = before[places + 2], before[places + 1], before[places]
        is_seen = _IS_SEEN[first]
        if not self._only_ascii:
            is_seen |= _IS_SECOND[first] & (_LEADS_TWO[second] | (_IS_SECOND[second] & _LEADS_THREE[third]))
        begins[places[is_seen]] = True
        begins[0:1] = True
        begins[ends[:-1]] = True
        keep = np.ones(len(data), dtype=bool)
        keep[ends - 1] = False
        begins &= keep  # a text without characters begins no word
        return data[keep], (np.flatnonzero(begins[keep]), np.flatnonzero(begins))


def cuts_at_spaces(state: Mapping[str, Any]) -> bool:
    """Whether a tokenizer, given as the content of its ``tokenizer.json``, can be given words one by one."""
    if any(not token["special"] for token in state["added_tokens"]) or state["model"].get("dropout"):
        return False
    splitters = _parts(state["pre_tokenizer"], "pretokenizers")
    if not all(map(_changes_characters, _parts(state["normalizer"], "normalizers"))):
        return False
    for part in splitters:
        kind = part["type"]
        if kind == "ByteLevel":
            is_known = part["use_regex"]
        elif kind == "Metaspace":
            # A word alone must look like a word in a text: not one that has lost its space, and would be the first.
            is_known = part["split"] and part["prepend_scheme"] == "always"
        else:
            is_known = kind in _PRE_TOKENIZERS
        if not is_known:
            return False
    return any(part["type"] in ("ByteLevel", "Metaspace") for part in splitters)


def _changes_characters(part: Mapping[str, Any]) -> bool:
    if part["type"] != "Replace":
        return part["type"] in _NORMALIZERS
    pattern, content = part["pattern"], part["content"]
    is_run = pattern.get("Regex") == _RUN_OF_SPACES and content == " "
    return is_run or not {" ", ""}.intersection((*pattern.get("String", " "), content or "", *content))


def _parts(section: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    if section is None:
        return []
    return [part for one in section[name] for part in _parts(one, name)] if section["type"] == "Sequence" else [section]


def _nothing(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """No word is plain: all are left to the tokenizer."""
    return np.zeros(0, dtype=np.uint32), np.zeros(len(starts), dtype=np.int64)
