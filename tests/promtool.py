"""What `promtool check metrics` would find on a page of metrics, by Prometheus' own parser and rules for names."""

from __future__ import annotations

import math

from prometheus_client.parser import text_string_to_metric_families


def promtool(page: str) -> list[str]:
    """Names with help, type, unit and ending, and whole histograms; empty: nothing is wrong."""
    faults = []
    for family in text_string_to_metric_families(page):
        name = family.name
        if not family.documentation or f"# HELP {name}" not in page:
            faults.append(f"{name}: no help")
        if family.type not in ("counter", "gauge", "histogram"):
            faults.append(f"{name}: {family.type}")
        if family.type == "counter" and any(not sample.name.endswith("_total") for sample in family.samples
                                            if not sample.name.endswith("_created")):
            faults.append(f"{name}: a counter ends with _total")
        if family.type != "counter" and name.endswith(("_total", "_count", "_sum", "_bucket")):
            faults.append(f"{name}: the ending of another type")
        if any(part in name for part in ("milli", "minutes", "kilobytes")) or name != name.lower():
            faults.append(f"{name}: not a base unit")
        seen = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in family.samples]
        if len(set(seen)) < len(seen):
            faults.append(f"{name}: twice")
        if family.type == "histogram":
            by: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
            counts = {tuple(sorted(sample.labels.items())): sample.value for sample in family.samples
                      if sample.name.endswith("_count")}
            for sample in family.samples:
                if sample.name.endswith("_bucket"):
                    labels = tuple(sorted((key, each) for key, each in sample.labels.items() if key != "le"))
                    by.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
            for labels, buckets in by.items():
                if buckets != sorted(buckets) or [count for _, count in buckets] != sorted(c for _, c in buckets):
                    faults.append(f"{name}: its buckets do not grow")
                if buckets[-1] != (math.inf, counts[labels]):
                    faults.append(f"{name}: its last bucket is not the count")
    return faults
