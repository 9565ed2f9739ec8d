"""Wenmo beside its peers, in one run. Only ratios count: machines are noisy, and differ.

`python -m bench.PART` measures one part, `make bench` all of them, one after the other, and writes docs/performance.md.
"""

PARTS = ("start", "training", "loss_curve", "scaling", "fine_tuning", "lora", "memory", "packing", "first_step", "plan",
         "serving", "classification", "quality")
