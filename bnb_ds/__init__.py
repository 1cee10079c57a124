"""BERT-NAR-BERT on DeepSpeed: pre-training, fine-tuning and parallel generation."""

__version__ = "0.1.0"
