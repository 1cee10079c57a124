"""The small file beside a saved model with which transformers finds this package by itself.

After ``import bnb_ds`` transformers knows the models, and never reads the file. Without it, ``from_pretrained`` asks
for ``trust_remote_code=True`` and then runs the file, which imports bnb_ds, or says how to install it.
"""

from __future__ import annotations

from pathlib import Path

from bnb_ds.common.files import write_atomic

CODE_FILE = "modeling_bnb.py"
_CLASSES = {
    "AutoConfig": "BnbConfig",
    "AutoModel": "BnbModel",
    "AutoModelForSeq2SeqLM": "BnbForConditionalGeneration",
    "AutoModelForSequenceClassification": "BnbForSequenceClassification",
}
#: `auto_map` of config.json: the class of each auto class
AUTO_MAP = {auto: f"{CODE_FILE.removesuffix('.py')}.{name}" for auto, name in _CLASSES.items()}

# transformers looks for imports outside of `try`, and would advise `pip install bnb_ds`, which nobody has published.
_CODE = f'''"""The classes of this model. They are those of the package bnb_ds; this file only imports them."""

try:
    from bnb_ds import {", ".join(sorted(_CLASSES.values()))}
except ImportError as error:
    if error.name != "bnb_ds":
        raise
    raise ImportError(
        "this model needs the Python package bnb_ds (BERT-NAR-BERT on DeepSpeed), which is installed from its source: "
        "run `pip install .` in a checkout of bnb_ds, then load the model again"
    ) from None
'''


def write_code(directory: Path) -> None:
    """Write the file into an existing directory."""
    write_atomic(directory / CODE_FILE, _CODE)
