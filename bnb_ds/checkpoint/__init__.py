"""What a run leaves on disk, and how the next launch goes on from it.

Face: `resume.plan_resume`, `run_dir.RunDir`, `store.CheckpointWriter`, `weights.read_weights`.
"""
