"""The layers that models are built of. Each loads its own slice of a checkpoint and hides the ranks."""
