"""The command ``bnb-ds tune``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from bnb_ds.common.arguments import CommandParser, describe, natural, positive
from bnb_ds.errors import CONTINUE


def add_tune(command: CommandParser) -> None:
    """Add the arguments of ``bnb-ds tune``."""
    describe(
        command,
        "Search for the settings with which a recipe reaches the best score. Optuna proposes settings (TPE). Trials\n"
        "run side by side, and those whose evaluations fall behind the median of the others end early. The same\n"
        "command continues a search. The best settings are written as OUTPUT/best.yaml and OUTPUT/best.json.",
        "bnb-ds tune runs/recipes/finetune/glue/rte.yaml --deepspeed-config ds_configs/finetune_glue.json"
        " --space space.yaml --output work/tune/rte",
    )
    command.add_argument("recipe", help="YAML file of a run, or the name of a shipped one (`bnb-ds recipes`)")
    command.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="replace a value of the recipe in all trials"
    )
    command.intermixed = True
    command.add_argument(
        "--deepspeed-config", required=True, metavar="JSON", help="JSON file, or the name of a shipped one"
    )
    command.add_argument(
        "--space", type=Path, required=True, metavar="FILE", help="YAML file that says what varies, and within what"
    )
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory of the search")
    command.add_argument(
        "--trials", type=positive, help="trials to make (default: all combinations of a space of lists, else 20)"
    )
    command.add_argument("--jobs", type=positive, help="trials at a time (default: one for each free GPU, else core)")
    command.add_argument("--seed", type=natural, default=0, help="seed of the proposals (default %(default)s)")
    command.set_defaults(run=_tune, next_step=CONTINUE)


def _tune(args: argparse.Namespace) -> None:
    from bnb_ds.common.files import refuse_directory
    from bnb_ds.config.loading import load_recipe, recipe_values
    from bnb_ds.config.sections import PretrainRecipe
    from bnb_ds.finetune.goal import goal_of
    from bnb_ds.finetune.recipe import FinetuneRecipe
    from bnb_ds.tune.places import free_places
    from bnb_ds.tune.space import Settings, read_space
    from bnb_ds.tune.study import Goal, Search, read_ds_values, search

    refuse_directory(args.output)
    space = read_space(args.space)
    recipe = recipe_values(args.recipe, args.overrides)
    if "task" in recipe:
        goal = goal_of(load_recipe(args.recipe, args.overrides, FinetuneRecipe))
    else:
        load_recipe(args.recipe, args.overrides)
        goal = Goal("bnb_ds.pretrain", "eval/loss", False, PretrainRecipe)
    settings = Settings(recipe, read_ds_values(args.deepspeed_config))
    places = free_places(args.jobs)
    best = search(Search(settings, space, goal, args.output, places, args.trials, args.seed))
    print(f"best: trial {best.trial}, {goal.tag} {best.score:.5g}")
    for name, value in best.values.items():
        print(f"  {name} = {value}")
    program = goal.module.rpartition(".")[2]
    launch = ["bnb-ds", program, str(best.recipe), "--deepspeed-config", str(best.ds_config)]
    print(f"  launch it with: {shlex.join(launch)}")
