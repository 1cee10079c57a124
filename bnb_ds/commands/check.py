"""The command ``bnb-ds check``."""

from __future__ import annotations

import argparse

from bnb_ds.common.arguments import positive
from bnb_ds.errors import EXIT_USER_ERROR


def add_check(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds check``."""
    command.add_argument("recipe", help="YAML file; shipped ones are under runs/recipes/")
    command.add_argument("overrides", nargs="*", metavar="key.path=value", help="as for runs/pretrain.py")
    command.add_argument("--deepspeed_config", required=True, help="JSON file; shipped ones are under ds_configs/")
    command.add_argument("--world-size", type=positive, default=1, help="number of ranks (default %(default)s)")
    command.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    from bnb_ds.commands.launch_check import check

    findings = check(args.recipe, args.overrides, args.deepspeed_config, args.world_size)
    print("\n".join(findings.lines))
    faults = len(findings.errors)
    print(f"check: {faults} errors" if faults else "check: nothing stands in the way of this launch")
    return EXIT_USER_ERROR if faults else 0
