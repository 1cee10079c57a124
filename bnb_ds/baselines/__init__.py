"""The models of transformers that BnB is compared with; the same programs train and evaluate them.

They take the same packed batches (:class:`bnb_ds.data.batch.PackedBatch`) and return the same outputs as BnB, so the
launcher, the metrics and the reports treat them alike. A trained baseline is a plain Hugging Face directory.

Face: `build.bert2bert_config`, `build.build_bert2bert`, `classifier.ClassifierModel`, `seq2seq.AutoregressiveModel`.
"""
