"""Bad words in every spelling: the automaton against a search of the decoded text, alone and in the CTC search."""

from __future__ import annotations

import functools
import itertools
import random
import re

import pytest
import torch

from bnb_ds.ctc.greedy import collapse
from bnb_ds.data.subwords.rules import WordPieceRules
from bnb_ds.decoding.bad_words import BadWords
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.decoding.search import Slots, refine
from bnb_ds.decoding.slotwise import without_bad_words
from bnb_ds.errors import ConfigError
from tests.plain_beam import all_outputs
from tests.tiny import bnb_model, padded_form, source_ids
from tests.unit.decoding.test_search import log_probs_of, slots_of

PIECES = ["[PAD]", "[SEP]", "a", "##a", "ab", "##b", "b", "##ba", "-", "##-", "A", "##B"]
SPECIAL = {0, 1}


def text_of(tokens) -> str:
    """The text of an output. ``~`` stands for a space that may be left out: one beside a mark."""
    text = ""
    for token in tokens:
        if token in SPECIAL:
            continue
        piece = PIECES[token]
        text += piece[2:] if piece.startswith("##") and len(piece) > 2 else f" {piece}"
    return re.sub(r"(?<=-) | (?=-)", "~", text)


def holds(tokens, words, inside=False, any_case=False) -> bool:
    """The plain way: decode the text and search for the words."""
    text = text_of(tokens)
    for word in words:
        atoms = re.findall(r"\w+|[^\w\s]", word)
        gaps = [r"~?" if "-" in pair else r"\s" for pair in itertools.pairwise(atoms)]
        pattern = "".join(
            part for pair in itertools.zip_longest(map(re.escape, atoms), gaps, fillvalue="") for part in pair
        )
        if not inside:
            pattern = (r"\b" if atoms[0] != "-" else "") + pattern + (r"\b" if atoms[-1] != "-" else "")
        if re.search(pattern, text, re.IGNORECASE if any_case else 0):
            return True
    return False


WORDS = [["ab"], ["aba", "bb"], ["a b"], ["ab-a"], ["a-", "b"], ["Ab"], ["ab ab"], ["-"]]


@pytest.mark.parametrize("words", WORDS, ids=str)
@pytest.mark.parametrize(("inside", "any_case"), [(False, False), (True, False), (False, True), (True, True)])
def test_the_automaton_finds_what_is_in_the_text(words, inside, any_case):
    bad_words = BadWords(words, WordPieceRules(PIECES, SPECIAL), inside=inside, any_case=any_case)
    draw = random.Random(0)
    hits = 0
    for _ in range(3000):
        tokens = [draw.randrange(len(PIECES)) for _ in range(draw.randrange(9))]
        expected = holds(tokens, words, inside, any_case)
        assert bad_words.allow(tokens) != expected, (tokens, text_of(tokens))
        longest = bad_words.longest(tokens)
        assert bad_words.allow(tokens[:longest])
        assert not any(bad_words.allow(tokens[:end]) for end in range(longest + 1, len(tokens) + 1))
        hits += expected
    assert 10 < hits < 2990


@functools.cache
def ranked_outputs(seed: int) -> tuple[Slots, list[list[tuple[int, ...]]]]:
    """Slots in which words are likely, and all outputs of each source, the most probable first."""
    slots = slots_of(seed, lengths=[3, 1, 3], vocab=len(PIECES), scale=0.4)
    slots.bias[torch.tensor([PIECES.index(piece) for piece in ("a", "##b", "b", "##-", "##a", "A")])] += 1.5
    tables = [all_outputs(rows, 0) for rows in log_probs_of(slots)]
    return slots, [sorted(table, key=table.get, reverse=True) for table in tables]


@pytest.mark.parametrize("words", WORDS[:6], ids=str)
@pytest.mark.parametrize("inside", [False, True])
def test_a_wide_beam_finds_the_best_output_without_the_words(words, inside):
    bad_words = BadWords(words, WordPieceRules(PIECES, SPECIAL), inside=inside)
    hits = 0
    for seed in range(2):
        slots, rankings = ranked_outputs(seed)
        options = DecodeOptions(beam_size=300, beam_classes=len(PIECES), bad_words=bad_words)
        ids, lengths = refine(slots, options)
        for ranked, row, end in zip(rankings, ids.tolist(), lengths.tolist(), strict=True):
            legal = (tokens for tokens in ranked if not holds(tokens, words, inside))
            assert tuple(row[:end]) == next(legal)
            hits += any(holds(tokens, words, inside) for tokens in ranked[:40])
    assert hits or words in (["aba", "bb"], ["ab-a"], ["Ab"])


LENGTHS = [30, 1, 17, 2, 25, 40]


@pytest.mark.parametrize("words", WORDS, ids=str)
@pytest.mark.parametrize(("inside", "any_case"), [(False, False), (True, True)])
@pytest.mark.parametrize("beam", [{}, {"beam_size": 2, "beam_classes": 2}, {"beam_size": 8}], ids=str)
def test_no_output_holds_a_bad_word_and_greedy_ones_without_stay(words, inside, any_case, beam):
    bad_words = BadWords(words, WordPieceRules(PIECES, SPECIAL), inside=inside, any_case=any_case)
    changed = 0
    for seed in range(4):
        slots = slots_of(seed, lengths=LENGTHS, vocab=len(PIECES), scale=1.0)
        greedy_BT = torch.nn.utils.rnn.pad_sequence([rows.argmax(-1) for rows in log_probs_of(slots)], batch_first=True)
        greedy = collapse(greedy_BT, slots.layout.lengths)
        given = () if beam else greedy
        found = refine(slots, DecodeOptions(bad_words=bad_words, **beam), *given)
        for *both, row, end in zip(*(part.tolist() for part in greedy + found), strict=True):
            before, after = tuple(both[0][: both[1]]), tuple(row[:end])
            assert not holds(after, words, inside, any_case), text_of(after)
            if not beam and not holds(before, words, inside, any_case):
                assert after == before
            changed += after != before
    assert changed or words == ["ab ab"]


def test_a_bad_word_at_the_very_end_is_left_out():
    """Here every prefix of the beam ends in the word, and up to the last slot it could have become a longer one."""
    slots = slots_of(0, lengths=[3], vocab=len(PIECES))
    slots.hidden[:] = 0
    slots.bias[:] = -torch.inf
    slots.bias[PIECES.index("ab")] = 0.0
    slots.bias[0] = -60.0
    bad_words = BadWords(["ab"], WordPieceRules(PIECES, SPECIAL))
    ids, lengths = refine(slots, DecodeOptions(beam_size=2, beam_classes=1, bad_words=bad_words))
    assert (lengths.tolist(), ids[0, :0].tolist()) == ([0], [])


def test_lengths_stay_the_most_probable_ones_without_the_words():
    bad_words = BadWords(["ab", "a"], WordPieceRules(PIECES, SPECIAL))
    slots = slots_of(1, lengths=[4, 1, 3, 4], vocab=len(PIECES), scale=1.5)
    log_probs = log_probs_of(slots)
    best_N, gains_N = torch.cat(log_probs).max(1)[::-1]
    head = (slots.hidden, slots.weight, slots.bias)
    found, gained = without_bad_words(best_N, gains_N, head, slots.layout, bad_words, len(PIECES))
    changed = 0
    for rows, tokens, gains, before in zip(
        log_probs, *(part.split(slots.layout.lengths.tolist()) for part in (found, gained, best_N)), strict=True
    ):
        legal = [way for way in itertools.product(range(len(PIECES)), repeat=len(rows)) if bad_words.allow(way)]
        picked = rows[torch.arange(len(rows)), torch.tensor(legal)].sum(1)
        assert tuple(tokens.tolist()) == legal[int(picked.argmax())]
        assert gains.sum().item() == pytest.approx(picked.max().item())
        changed += not torch.equal(tokens, before)
    assert changed
    # With one class for each slot, only the token that writes nothing is left.
    narrow, _ = without_bad_words(best_N, gains_N, head, slots.layout, bad_words, 1)
    assert all(bad_words.allow(tokens.tolist()) for tokens in narrow.split(slots.layout.lengths.tolist()))


def pieces_of(config) -> list[str]:
    """Pieces for a small model: three special tokens, then the letters a to c, alone and continuing, in turn."""
    return [
        "[PAD]",
        "[CLS]",
        "[SEP]",
        "[UNK]",
        *(f"{'##' * (i % 2)}{'abc'[i // 2 % 3]}" for i in range(config.vocab_size - 4)),
    ]


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ({}, {}),
        ({}, {"beam_size": 4}),
        ({"decoder_length": "predicted"}, {"length_beam": 3}),
        *(({"target": "dag"}, {"strategy": name}) for name in ("lookahead", "joint_viterbi", "beam")),
    ],
    ids=str,
)
@pytest.mark.parametrize("inside", [False, True])
def test_every_way_to_decode_keeps_the_words_out(policy, options, inside):
    model = bnb_model(**policy)
    inputs = padded_form(source_ids([7, 1, 10, 3, 9, 2]))
    pieces = pieces_of(model.config)
    free = model.generate(**inputs, return_scores=True, **options)
    texts = ["".join(f" {pieces[token]}" for token in row if token > 3).replace(" ##", "") for row in rows_of(free)]
    first_words = {text.split()[0].removeprefix("##") for text in texts if text}
    bad_words = BadWords(first_words, WordPieceRules(pieces, [0, 1, 2]), unknown_id=3, inside=inside)
    kept = model.generate(**inputs, return_scores=True, bad_words=bad_words, **options)
    hits = 0
    for before, after in zip(*(rows_of(output) for output in (free, kept)), strict=True):
        assert bad_words.allow(after)
        hits += not bad_words.allow(before)
        if bad_words.allow(before) and "beam_size" not in options and options.get("strategy") != "beam":
            assert after == before
    assert hits
    # A graph writes its first and last slot. If all it has for them is bad words, the output is cut instead.
    assert torch.isfinite(kept.scores).all() or "strategy" in options


def rows_of(output) -> list[list[int]]:
    return [row[:end] for row, end in zip(output.sequences.tolist(), output.lengths.tolist(), strict=True)]


def test_words_that_cannot_be_written_are_known():
    pieces = ["[PAD]", "py", "##thon", "x", "##yz", "[UNK]"]
    for words, options, unwritable in (
        (["python", "snake", "xthon"], {}, ["snake"]),
        (["[UNK]", "UNK"], {}, ["[UNK]", "UNK"]),
        (["thon", "hx", "hon"], {"inside": True}, ["hx"]),
        (["Python", "hon"], {}, ["Python", "hon"]),
        (["Python"], {"any_case": True}, []),
        (["python xyz", "python 3"], {}, ["python 3"]),
    ):
        found = BadWords(words, WordPieceRules(pieces, [0, 5]), unknown_id=5, **options)
        assert found.unwritable == unwritable
        assert bool(found) == (len(unwritable) < len(words))
    assert not BadWords(["python xyz"], WordPieceRules(pieces, [0, 5]), unknown_id=5).allow([3, 1, 2, 3, 4])


def test_an_unknown_word_is_not_banned_and_hides_none():
    """Some decoders leave [UNK] out, others write it."""
    pieces = ["[PAD]", "py", "##thon", "python", "[UNK]"]
    words = BadWords(["python"], WordPieceRules(pieces, [0, 4]), unknown_id=4)
    assert words.allow([4, 1, 4])
    assert not words.allow([1, 4, 2])
    assert not words.allow([3, 4])
    assert not BadWords(["thon"], WordPieceRules(pieces, [0, 4]), unknown_id=4).allow([1, 4, 2])


@pytest.mark.parametrize(
    ("words", "pieces", "special", "message"),
    [
        ([" "], PIECES, SPECIAL, "bad word ' ': give at least one letter or mark"),
        (["a"], ["a", "b"], [], r"bad words need a vocabulary with special tokens, such as \[SEP\]: leave them out"),
    ],
)
def test_what_cannot_be_banned(words, pieces, special, message):
    with pytest.raises(ConfigError, match=message):
        BadWords(words, WordPieceRules(pieces, special))


def test_what_unknown_words_become_is_a_spelling_too():
    """Where [UNK] is written as the quotation mark that the vocabulary lacks, as after training on such targets."""
    pieces = ["[PAD]", "[UNK]", "a", "##a", "b"]
    free = BadWords(["\u201d"], WordPieceRules(pieces, {0, 1}), unknown_id=1)
    assert free.unwritable == ["\u201d"]
    mark = BadWords(["\u201d", "a \u201d b"], WordPieceRules(pieces, {0, 1}), unknown_id=1, unknown_texts=["\u201d"])
    assert mark.unwritable == []
    assert not mark.allow([2, 1])
    phrase = BadWords(["b\u201d a"], WordPieceRules(pieces, {0, 1}), unknown_id=1, unknown_texts=["\u201d"])
    assert [phrase.allow(row) for row in ([4, 1, 2], [4, 1, 3], [4, 2], [2, 1, 4], [1, 4, 1])] == [
        False,
        False,
        True,
        True,
        True,
    ]
    word = BadWords(["xa", "x"], WordPieceRules(pieces, {0, 1}), unknown_id=1, unknown_texts=["x"])
    assert not word.allow([1])
    assert not word.allow([1, 3])
    longer = BadWords(["xa"], WordPieceRules(pieces, {0, 1}), unknown_id=1, unknown_texts=["x"])
    assert longer.allow([1, 2])
    assert longer.allow([1])
    assert not longer.allow([1, 3])


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("word", ["caf\u00e9", "cafe\u0301"])
def test_an_accent_can_be_encoded_in_two_ways(word, inside):
    pieces = ["[PAD]", "caf", "##\u00e9", "##e", "##\u0301", "cafe"]
    bad_words = BadWords([word], WordPieceRules(pieces, {0}), inside=inside)
    assert bad_words.unwritable == []
    assert [bad_words.allow(row) for row in ([1, 2], [1, 3, 4], [5, 4], [5], [1, 3])] == [False] * 3 + [True] * 2


def test_an_added_token_may_hold_spaces():
    bad_words = BadWords(["a b"], WordPieceRules(["[PAD]", "a b", "a", "b"], {0}))
    assert [bad_words.allow(row) for row in ([1], [2, 3], [2])] == [False, False, True]
