"""BERT-NAR-BERT on DeepSpeed: pre-training, fine-tuning and parallel generation.

Importing this package is cheap: its names are loaded on first use. After ``import bnb_ds``, transformers knows the
models, so ``AutoModelForSeq2SeqLM.from_pretrained`` loads an exported one.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

from bnb_ds.version import __version__

if TYPE_CHECKING:
    from bnb_ds.generate.pipeline import BnbPipeline
    from bnb_ds.model.classification import BnbEncoderModel, BnbForSequenceClassification
    from bnb_ds.model.configuration import BnbConfig
    from bnb_ds.model.network import BnbModel
    from bnb_ds.modeling import BnbForConditionalGeneration

_HOMES = {
    "BnbConfig": "bnb_ds.model.configuration",
    "BnbEncoderModel": "bnb_ds.model.classification",
    "BnbForConditionalGeneration": "bnb_ds.modeling",
    "BnbForSequenceClassification": "bnb_ds.model.classification",
    "BnbModel": "bnb_ds.model.network",
    "BnbPipeline": "bnb_ds.generate.pipeline",
}

__all__ = [
    "BnbConfig",
    "BnbEncoderModel",
    "BnbForConditionalGeneration",
    "BnbForSequenceClassification",
    "BnbModel",
    "BnbPipeline",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _load_models()
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@wrapt.when_imported("transformers.models.auto.configuration_auto")
def _register_on_use(auto: ModuleType) -> None:
    # transformers cannot register a class by name, and importing our classes loads torch. So they are registered at the
    # first call of AutoConfig.from_pretrained. That is early enough: every auto class reads a configuration first.
    @wrapt.patch_function_wrapper(auto, "AutoConfig.from_pretrained")
    def from_pretrained(wrapped: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
        _load_models()
        return wrapped(*args, **kwargs)


def _load_models() -> None:
    for module in ("bnb_ds.modeling", "bnb_ds.model.classification"):
        importlib.import_module(module)
