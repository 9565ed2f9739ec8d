"""The blocks that models are built from. Flat tokens throughout: M tokens of several sequences, end to end."""
