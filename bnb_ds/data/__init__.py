"""Turns shards into batches: tokenizers, sequences, corruption, samples, batches, loader.

Face: `batch.PackedBatch`, `loader.StepLoader`, `samples.PretrainSamples`, `tokenization.load_tokenizer`.
"""
