"""The training job that pre-training and fine-tuning share: engine, loop, step, schedule, tracking.

Face: `job.Job`, `job.run_job`, `job.run_process`, `launch.Launch`.
"""
