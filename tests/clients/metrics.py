#!/usr/bin/python3
"""Reads a file in Prometheus' text format with Prometheus' own client: one JSON object, of families by their names.

usage: metrics.py FILE
"""
import json
import sys

from prometheus_client.parser import text_fd_to_metric_families

families = {}
with open(sys.argv[1], encoding="utf-8") as text:
    for family in text_fd_to_metric_families(text):
        assert family.name not in families, f"{family.name} twice"
        samples = [{"name": s.name, "labels": s.labels, "value": s.value} for s in family.samples]
        families[family.name] = {"type": family.type, "help": family.documentation, "samples": samples}
json.dump(families, sys.stdout)
