"""The commands ``bnb-ds path`` and ``bnb-ds recipes``: what is shipped beside the code."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from bnb_ds.common import shipped
from bnb_ds.common.arguments import describe
from bnb_ds.common.files import new_file, refuse_output
from bnb_ds.errors import ConfigError


def add_path(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds path``."""
    describe(
        command,
        "Print where a shipped file lies: a program or launch script, a recipe or a DeepSpeed JSON.\n"
        f"Programs and scripts: {', '.join(shipped.PROGRAMS)}. Paths below runs/ and ds_configs/ can be given too.",
        "bnb-ds path pretrain",
    )
    command.add_argument(
        "name", nargs="?", help="what to look for (default: the directory that holds runs/ and ds_configs/)"
    )
    command.set_defaults(run=_path)


def add_recipes(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bnb-ds recipes``."""
    describe(
        command,
        "List the shipped recipes and DeepSpeed JSONs, show or copy one, or print the JSON Schema of recipes.\n"
        "Every command that reads a recipe or a JSON takes these names in the place of a file.",
        "bnb-ds recipes --copy pretrain/tiny my_recipe.yaml",
    )
    action = command.add_mutually_exclusive_group()
    action.add_argument("--show", metavar="NAME", help="print a recipe or a DeepSpeed JSON")
    action.add_argument("--copy", nargs=2, metavar=("NAME", "FILE"), help="copy one to a new file, to be changed")
    action.add_argument(
        "--schema",
        action="store_true",
        help="print the JSON Schema of recipes, with which editors complete and check them",
    )
    command.set_defaults(run=_recipes)


def _path(args: argparse.Namespace) -> None:
    print(shipped.ROOT if args.name is None else shipped.locate(args.name))


def _recipes(args: argparse.Namespace) -> None:
    if args.show is not None:
        print(_text(args.show), end="")
    elif args.copy is not None:
        name, output = args.copy
        text = _text(name)
        refuse_output(output, flag="--copy", is_new=True, makes_parents=True)
        with new_file(output) as file:
            file.write(text.encode("utf-8"))
        print(f"recipes: {name} -> {output}")
    elif args.schema:
        from bnb_ds.finetune.recipe_schema import recipe_schema

        print(json.dumps(recipe_schema(), indent=1))
    else:
        print("\n".join([*_listed("recipe", shipped.recipes()), "", *_listed("DeepSpeed JSON", shipped.ds_configs())]))


def _text(name: str) -> str:
    path = shipped.locate(name)
    if path.suffix not in (".yaml", ".json"):
        raise ConfigError(f"{name}: is neither a recipe nor a DeepSpeed JSON; `bnb-ds recipes` lists their names")
    return path.read_text(encoding="utf-8")


def _listed(title: str, files: dict[str, Path]) -> list[str]:
    width = max(map(len, [title, *files]))
    return [f"{title:{width}}  what it is for", *(f"{name:{width}}  {_purpose(path)}" for name, path in files.items())]


def _purpose(path: Path) -> str:
    """The first sentence of the comments at the head of a recipe; the batch and precision of a JSON."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return _batch_and_precision(json.loads(text))
    comments: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.lstrip("# "))
    return re.split(r"[.;] ", " ".join(comments))[0].rstrip(".")


def _batch_and_precision(values: dict) -> str:
    kinds = {"fp16": "fp16", "bf16": "bf16", "torch_autocast": "autocast"}
    precision = next((kind for key, kind in kinds.items() if values.get(key, {}).get("enabled")), "fp32")
    stage = values.get("zero_optimization", {}).get("stage", 0)
    optimizer = values["optimizer"]
    rate = optimizer["params"]["lr"]
    return f"batch {values['train_batch_size']}, {precision}, ZeRO {stage}, {optimizer['type']}, learning rate {rate:g}"
