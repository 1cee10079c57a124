"""Model directories that need nothing of the run; ONNX graphs; the reference implementation's models.

Face: `finetuned.export_best`, `import_reference.import_reference`, `onnx.export_onnx`, `pretrained.export`.
"""
