"""The command ``bnb-ds push``."""

from __future__ import annotations

import argparse
from pathlib import Path

from bnb_ds.common.arguments import describe


def add_push(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds push``."""
    describe(
        command,
        "Upload an exported model to the Hugging Face hub, with its scores in its README.",
        "bnb-ds push work/models/xsum somebody/bnb-xsum --license apache-2.0",
    )
    command.add_argument("model", type=Path, help="directory that `bnb-ds export` wrote")
    command.add_argument("repo", metavar="OWNER/NAME", help="repository on the hub; made if there is none")
    command.add_argument("--license", help="the hub's identifier of a licence (default: the one that README.md names)")
    command.add_argument(
        "--language",
        nargs="+",
        default=[],
        metavar="CODE",
        help="ISO 639-1 codes of the languages (default: those that README.md names)",
    )
    command.add_argument("--private", action="store_true", help="make a new repository private")
    command.add_argument("--revision", metavar="BRANCH", help="branch to push to (default: the main one)")
    command.add_argument("--message", help="message of the commit")
    command.set_defaults(run=_push)


def _push(args: argparse.Namespace) -> None:
    from bnb_ds.export.publish import push

    address = push(
        args.model,
        args.repo,
        license=args.license,
        languages=args.language,
        private=args.private,
        revision=args.revision,
        message=args.message,
    )
    print(f"push: {args.model} -> {address}")
