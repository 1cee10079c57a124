"""The command ``bnb-ds check``."""

from __future__ import annotations

import argparse

from bnb_ds.common.arguments import CommandParser, describe, positive
from bnb_ds.errors import EXIT_USER_ERROR


def add_check(command: CommandParser) -> None:
    """Add the arguments of ``bnb-ds check``."""
    describe(
        command,
        "Check a launch without its machines: recipe, DeepSpeed JSON, data, model, memory, disk space and resume.\n"
        "All errors are listed at once; the exit code is then 2. Tokenised data of fine-tuning is cached for the run.",
        "bnb-ds check runs/recipes/pretrain/tiny.yaml --deepspeed-config ds_configs/cpu_debug.json --world-size 2",
    )
    command.add_argument("recipe", help="YAML file, or the name of a shipped one (`bnb-ds recipes`)")
    command.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="replace a value of the recipe, for example steps=100"
    )
    command.intermixed = True  # as in the programs that launch
    command.add_argument(
        "--deepspeed-config", required=True, metavar="JSON", help="JSON file, or the name of a shipped one"
    )
    command.add_argument("--world-size", type=positive, default=1, help="number of ranks (default %(default)s)")
    command.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    from bnb_ds.commands.launch_check import check

    findings = check(args.recipe, args.overrides, args.deepspeed_config, args.world_size)
    print("\n".join(findings.lines))
    faults = len(findings.errors)
    print(f"check: {faults} errors" if faults else "check: no errors, this can be launched")
    return EXIT_USER_ERROR if faults else 0
