"""Errors that a user can cause and mend.

Every message is one line that names the file, field or flag and the way out. The command-line tools print it without
a traceback and exit with :data:`EXIT_USER_ERROR`; anything else that escapes is our own fault and keeps its traceback.
"""

from __future__ import annotations

EXIT_USER_ERROR = 2


class BnbError(ValueError):
    """Base of all errors that are the user's to mend."""


class ConfigError(BnbError):
    """A recipe, a DeepSpeed JSON or a flag is wrong."""


class DataError(BnbError):
    """A corpus, a shard directory or a tokenizer is missing, damaged or does not fit."""


class CheckpointError(BnbError):
    """A checkpoint or an exported model is missing, damaged or does not fit."""


class NonFiniteLossError(BnbError):
    """The training loss became infinite or not a number; the message names the samples."""
