"""Foreign checkpoints as files of ours."""
