"""Characters that stand for decisions between the passes; XML allows none of them, so no page holds them."""

from __future__ import annotations

import re

DROPPED = "\x02"  # readers do not see what stood here, and the punctuation around it may have to go
EDGE = "\x03"  # the texts on both sides do not touch: no run of quotes and no list mark forms across it
BREAK = "\x04"  # the end of a line that readers see and markup does not

_CONTROLS = "\x00\x01\x02\x03\x04\x05\x06\x07\x08"
_ANY_CONTROL = re.compile(f"[{_CONTROLS}]")
_SPECIAL = {ord(character): f"&#{ord(character)};" for character in "'[]{}|<>_-"}


def without_controls(text: str) -> str:
    """The text with line ends of one kind and none of the characters above."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    # Nine looks for one character are ten times as fast as a pattern.
    return _ANY_CONTROL.sub("", text) if any(control in text for control in _CONTROLS) else text


def literal(text: str) -> str:
    """Text that no later pass takes for markup. Entities in it stay entities, and nothing in it begins a line."""
    return EDGE + text.translate(_SPECIAL).replace("\n", BREAK) + EDGE
