"""BERT-NAR-BERT on DeepSpeed: pre-training, fine-tuning and parallel generation.

Importing the package registers the model with transformers, so that ``AutoModelForSeq2SeqLM.from_pretrained`` loads an
exported model.
"""

from bnb_ds.model.classification import BnbEncoderModel, BnbForSequenceClassification
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration, BnbModel

__version__ = "0.1.0"

__all__ = [
    "BnbConfig",
    "BnbEncoderModel",
    "BnbForConditionalGeneration",
    "BnbForSequenceClassification",
    "BnbModel",
    "__version__",
]
