"""A node's metrics, as Prometheus' own parser reads them."""

import requests
from prometheus_client.parser import text_string_to_metric_families

from .node import PATIENCE


class Scrape:
    """What `/metrics` said at one moment."""

    def __init__(self, endpoint):
        response = requests.get(f"{endpoint}/metrics", timeout=PATIENCE)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        self.families = {family.name: family for family in text_string_to_metric_families(response.text)}
        self.samples = {}
        for family in self.families.values():
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.samples, f"twice: {sample}"
                self.samples[key] = sample.value

    def value(self, name, **labels):
        """The value of one sample; `None` when there is none."""
        return self.samples.get((name, frozenset(labels.items())))

    def all(self, name, **labels):
        """The values of all samples that have these labels among theirs."""
        return [value for (found, has), value in self.samples.items() if found == name and labels.items() <= dict(has).items()]

    def labels(self, label):
        """All values that a label has."""
        return {dict(labels)[label] for _, labels in self.samples if label in dict(labels)}
