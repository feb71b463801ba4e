"""Helpers of tests that compare models with transformers: tiny checkpoints, paged steps, ranks in processes, parity."""
