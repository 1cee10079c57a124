"""The noise in its simplest form: one token after the other, with Python's integers."""

from __future__ import annotations

import numpy as np

from bnb_ds.data.corruption import OBJECTIVES, Corruption

WORD = 2**32 - 1
PERMUTED, CHOSEN, FATE, TOKEN, OBJECTIVE, PREFIX = range(6)
SIZES, GAPS = 8, 9


def mix64(word: int) -> int:
    word = ((word ^ word >> 30) * 0xBF58476D1CE4E5B9) % 2**64
    word = ((word ^ word >> 27) * 0x94D049BB133111EB) % 2**64
    return word ^ word >> 31


def draw(key: int, stream: int, counter: int = 0) -> int:
    """A draw below 2**31."""
    return draw_of_stream(mix64((key + (stream + 1) * 0x9E3779B97F4A7C15) % 2**64), counter)


def draw_of_stream(stream_key: int, counter: int) -> int:
    """One draw of `bnb_ds.common.randomness.packed_draws`."""
    word = (stream_key + counter * 0x9E3779B9) & WORD
    word = ((word ^ word >> 16) * 0x21F0AAAD & WORD) ^ stream_key >> 32
    word = (word ^ word >> 15) * 0xD35A2D97 & WORD
    return (word ^ word >> 15) >> 1


def corrupt(noise: Corruption, row: list[int], key: int) -> dict[str, list[int]]:
    """Source, target, chosen places of the source, and their labels, for one sequence."""
    objective = objective_of(noise, key)
    ordinary = [i for i in range(1, len(row) - 1) if row[i] not in noise.special_ids]
    source, chosen = list(row), []
    if "plm" in objective.split("+"):
        moved = [i for i in ordinary if draw(key, PERMUTED, i) < noise.permute_probability * 2**31]
        for place, origin in zip(moved, sorted(moved, key=lambda i: draw(key, PERMUTED, i) % 2**22), strict=True):
            source[place] = row[origin]
    if "mlm" in objective.split("+"):
        threshold = round(noise.mask_probability * 2**31)
        chosen = chosen_places(noise, row, key, ordinary, threshold)
        for i in chosen:
            fate, span = draw(key, CHOSEN, i), threshold
            if noise.word_starts is not None:
                fate, span = draw(key, FATE, i), 2**31
            if fate < round(0.8 * span):
                source[i] = noise.mask_id
            elif fate < round(0.9 * span):
                source[i] = draw(key, TOKEN, i) * noise.vocab_size // 2**31
    labels, target = [row[i] for i in chosen], list(row)
    if objective == "clm":
        cut = 1 + prefix_length(len(row) - 2, key)
        source, target = [*row[:cut], row[-1]], [row[0], *row[cut:]]
    if objective == "infill" and len(row) > 2:
        text, source, target, end = row[1:-1], [], [], 0
        for begin, size in segments(len(text), noise.mask_probability, key):
            source += [*text[end:begin], noise.mask_id]
            target += [*([noise.mask_id] if target else []), *text[begin : begin + size]]
            end = begin + size
        source, target = [row[0], *source, *text[end:], row[-1]], [row[0], *target, row[-1]]
    return {"source": source, "target": target, "chosen": chosen, "labels": labels}


def objective_of(noise: Corruption, key: int) -> str:
    weights = [noise.mixture.get(name, 0) for name in OBJECTIVES]
    place = draw(key, OBJECTIVE) / 2**31 * sum(weights)
    for name, weight in zip(OBJECTIVES, weights, strict=True):
        if place < weight:
            return name
        place -= weight
    raise AssertionError("a draw is below the sum of the weights")


def chosen_places(noise: Corruption, row: list[int], key: int, ordinary: list[int], threshold: int) -> list[int]:
    if noise.word_starts is None:
        return [i for i in ordinary if draw(key, CHOSEN, i) < threshold]
    places, is_chosen = [], False
    for i in range(1, len(row) - 1):
        if i == 1 or noise.word_starts(np.array(row[i - 1 : i + 1]))[1]:
            is_chosen = draw(key, CHOSEN, i) < threshold
        if is_chosen and i in ordinary:
            places.append(i)
    return places


def segments(length: int, share: float, key: int) -> list[tuple[int, int]]:
    """Begin and size of each segment of a text."""
    held = min(max(int(share * length + 0.5), 1), length)
    rest = length - held
    number = min(max(min(held // 4, rest // 8 + 1, 7) - 1, 1), held)
    cuts = sorted(draw(key, SIZES, i) * (held - number + 1) // 2**31 for i in range(number - 1))
    sizes = [end - begin + 1 for begin, end in zip([0, *cuts], [*cuts, held - number], strict=True)]
    slack = rest - 8 * (number - 1)
    gaps = sorted(draw(key, GAPS, i) * (slack + 1) // 2**31 for i in range(number))
    return [(gap + 8 * i + sum(sizes[:i]), sizes[i]) for i, gap in enumerate(gaps)]


def prefix_length(length: int, key: int) -> int:
    possible = [n for n in range(length + 1) if 7 * length <= 10 * n <= 8 * length]
    if possible:
        return possible[draw(key, PREFIX) * len(possible) // 2**31]
    return 1 if length == 1 else min(max(int(0.75 * length + 0.5), 1), length - 1)
