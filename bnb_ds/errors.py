"""Errors that a user can cause and fix.

Every message is one line that names the file, field or flag and says what to do. The command-line tools print it
without a traceback and exit with :data:`EXIT_USER_ERROR`. Ctrl-C is one line too. Any other exception is a bug of
bnb_ds and keeps its traceback.
"""

from __future__ import annotations

import difflib
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as in a shell

#: what to do after Ctrl-C: outputs appear under their names only when they are whole
REPEAT = "nothing is half written: repeat the command"
#: the same for commands that keep what is done
CONTINUE = "repeat the command to continue"
CONTINUE_WITH_RESUME = "repeat the command with --resume to continue"

_RANK_0_REPORTS_FIRST_SECONDS = 5.0


class BnbError(ValueError):
    """Base class of all errors that the user can fix."""

    #: True if every rank raises this error and another rank prints it
    reported_by_another_rank = False


class ConfigError(BnbError):
    """A recipe, a DeepSpeed JSON or a flag is wrong."""


class DataError(BnbError):
    """A corpus, a shard directory or a tokenizer is missing, is damaged or does not fit."""


class CheckpointError(BnbError):
    """A checkpoint or an exported model is missing, is damaged or does not fit."""


class NonFiniteLossError(BnbError):
    """The training loss became infinite or not a number; the message names the samples."""


class LossSpikeError(BnbError):
    """The training loss keeps jumping, and going back to older checkpoints has not helped."""


def how_to_install(extra: str) -> str:
    """The command that installs an extra of this package; no index has it, so without a checkout it names packages."""
    if not Path(__file__).with_name("shipped").is_dir():
        return f'pip install ".[{extra}]" in the checkout of bnb_ds'
    import importlib.metadata
    import re

    mark = re.compile(rf"""(.*); extra == ['"]{extra}['"]""")
    needed = [found[1] for line in importlib.metadata.requires("bnb_ds") or () if (found := mark.fullmatch(line))]
    return "pip install " + " ".join(f'"{requirement}"' for requirement in needed)


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` with the closest name of ``known``; without a close one, the list of all of them."""
    name = str(name)  # whoever writes a setting may write a number
    by_lowercase = {key.lower(): key for key in sorted(known)}
    matches = difflib.get_close_matches(name.lower(), by_lowercase, n=1)
    if matches:
        return f"did you mean {by_lowercase[matches[0]]!r}?"
    return f"known: {', '.join(by_lowercase.values())}"


def run_reporting_errors(program: str, function: Callable[[], int | None]) -> int:
    """Call a program's main function. A user's error becomes one line on stderr and exit code 2, Ctrl-C one and 130.

    The line of Ctrl-C says what to do next: the text of the KeyboardInterrupt, if somebody has given it one.

    In a job with several ranks, every rank meets the same wrong setting. Rank 0 reports it at once, which ends the job.
    The other ranks wait a few seconds before they print their line, so that normally only one line appears.
    """
    try:
        return function() or 0
    except BnbError as error:
        rank = int(os.environ.get("RANK", "0"))
        if error.reported_by_another_rank:
            return EXIT_USER_ERROR
        if rank:
            # On other hosts this rank may not be ended in time. There the first rank of the host reports first.
            first_on_host = os.environ.get("LOCAL_RANK", "0") == "0"
            time.sleep(_RANK_0_REPORTS_FIRST_SECONDS * (1 if first_on_host else 2))
        prefix = f"{program}: error" + (f" on rank {rank}" if rank else "")
        print(f"{prefix}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    except UnicodeEncodeError as error:
        if error.encoding.lower().startswith("utf"):
            raise
        # A recipe is UTF-8 everywhere, and may name a directory that the locale cannot.
        print(
            f"{program}: error: {error.object!a} has characters that this locale ({error.encoding}) cannot write;"
            " set PYTHONUTF8=1, or LC_ALL to a UTF-8 locale",
            file=sys.stderr,
            flush=True,
        )
        return EXIT_USER_ERROR
    except KeyboardInterrupt as interrupt:
        if os.environ.get("RANK", "0") == "0":
            next_step = str(interrupt) or REPEAT
            print(f"{program}: interrupted; {next_step}", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (`| head`) has closed the pipe. Python must not fail again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def require_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigError for a value that is none of the choices."""
    if value not in choices:
        raise ConfigError(f"{field} is {value!r}: use one of: {', '.join(choices)}")


def require_range(field: str, value: float, *, minimum: float, below: float | None = None) -> None:
    """Raise ConfigError for a number outside its range."""
    # In this form the comparison also refuses a NaN.
    if not minimum <= value < (math.inf if below is None else below):
        bound = f"at least {minimum}" + (f" and below {below}" if below is not None else "")
        bound += ", and no infinite one" if value == math.inf else ""
        raise ConfigError(f"{field} is {value}: give a value of {bound}")
