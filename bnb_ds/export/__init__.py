"""Export models from runs and to ONNX, and import models of the reference implementation.

Face: `finetuned.export_best`, `from_run.export`, `import_reference.import_reference`, `onnx.export_onnx`.
"""
