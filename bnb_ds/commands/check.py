"""The command ``bnb-ds check``."""

from __future__ import annotations

import argparse

from bnb_ds.common.arguments import CommandParser, describe
from bnb_ds.errors import EXIT_USER_ERROR
from bnb_ds.train.launch import add_launch_arguments, read_flags


def add_check(command: CommandParser) -> None:
    """Add the arguments of ``bnb-ds check``: those of a launch."""
    describe(
        command,
        "Check a launch without its machines: recipe, DeepSpeed JSON, data, model, memory, disk space and resume.\n"
        "It takes the arguments of the launch, and refuses what the launch would refuse, with all errors at once; the\n"
        "exit code is then 2. Tokenised data of fine-tuning is cached for the run.",
        "bnb-ds check runs/recipes/pretrain/tiny.yaml --deepspeed-config ds_configs/cpu_debug.json --world-size 2",
    )
    add_launch_arguments(command)
    command.intermixed = True  # as in the programs that launch
    command.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    from bnb_ds.commands.launch_check import check

    launch = read_flags(args)
    findings = check(args.recipe, args.overrides, args.deepspeed_config, args.world_size or 1, launch)
    print("\n".join(findings.lines))
    faults = len(findings.errors)
    print(f"check: {faults} errors" if faults else "check: no errors, this can be launched")
    return EXIT_USER_ERROR if faults else 0
