"""Generate text from text: the pipeline, its engines, and files of lines.

Face: `pipeline.BnbPipeline`.
"""
