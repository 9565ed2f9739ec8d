"""Hubs: models and data sets that lie elsewhere, fetched once and read like local files."""
