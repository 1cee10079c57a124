"""One training job, whatever is trained: engine, loop, step, schedule, tracking.

Face: `job.Job`, `job.run_job`, `job.run_process`, `launch.Launch`.
"""
