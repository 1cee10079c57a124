"""The files of a run on disk, and resuming from them.

Face: `resume.plan_resume`, `run_dir.RunDir`, `store.CheckpointWriter`, `weights.read_weights`.
"""
