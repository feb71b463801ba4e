"""What tests of the shard share: the integer model's reference, a small scheduler, and ways to run a shard."""
