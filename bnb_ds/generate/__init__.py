"""Text in, text out: pipeline, engines, files of lines.

Face: `pipeline.BnbPipeline`.
"""
