"""Two traps of Romanian text: the letters ș and ț in two encodings, and scores of text without diacritics.

Older texts, WMT16's among them, write ş and ţ with a cedilla where the language has a comma below. The pairs look alike
and are different characters, so words have two spellings, and BLEU counts them as different. Some published scores of
WMT16 en-ro are of text whose diacritics were removed altogether (as by the scripts of Sennrich et al., WMT 2016).
"""

from __future__ import annotations

import unicodedata
from typing import Literal, get_args

#: none: as it is; comma: cedillas become commas below; plain: Romanian letters lose all their marks
Spelling = Literal["none", "comma", "plain"]
SPELLINGS: tuple[Spelling, ...] = get_args(Spelling)

_COMMA = str.maketrans("\u015e\u015f\u0162\u0163", "\u0218\u0219\u021a\u021b")  # ŞşŢţ -> ȘșȚț
_PLAIN = str.maketrans("\u0218\u0219\u021a\u021b\u0102\u0103\u00c2\u00e2\u00ce\u00ee", "SsTtAaAaIi")  # ȘșȚțĂăÂâÎî


def respell(text: str, spelling: Spelling) -> str:
    """The text in one spelling. Letters that are written with combining marks are composed first, unless it is none."""
    if spelling == "none":
        return text
    text = unicodedata.normalize("NFC", text).translate(_COMMA)
    return text.translate(_PLAIN) if spelling == "plain" else text
