"""Wenmo beside its peers, in one run. Only ratios count: machines are noisy, and differ."""
