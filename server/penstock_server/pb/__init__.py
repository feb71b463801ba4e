"""Generated protobuf stubs; see `server/generate_stubs.py`. Importing them loads neither torch nor the engine."""
