"""Training through Accelerate: worlds, schedules, checkpoints, logs."""
