"""One shard: the Python process that owns a GPU (or CPU threads), the weights and the KV cache of one rank."""
