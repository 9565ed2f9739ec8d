"""One short story a verb: what happens, in order. The rooms below do the work."""
