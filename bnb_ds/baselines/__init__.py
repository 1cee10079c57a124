"""The models BnB is compared with, from transformers, trained and evaluated by the same programs.

They read the same packed batches (:class:`bnb_ds.data.batch.PackedBatch`) and answer with the same outputs, so that the
launcher, the metrics and the reports know no difference. A trained one is a plain Hugging Face directory.
"""
