"""What is fetched or made before a start, each by a process of its own that the launcher runs: a hub's model, a
tokenizer's file. Nothing here imports torch.
"""
