"""The deployment's files as tests read them: services, alert rules, the dashboard's expressions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

TOP = Path(__file__).resolve().parents[1]
COMPOSE = TOP / "deploy" / "compose"
ALERTS = COMPOSE / "prometheus" / "alerts.yml"
DASHBOARD = COMPOSE / "grafana" / "dashboards" / "hearth.json"


def load(path: Path) -> dict[str, Any]:
    """A YAML (or JSON) file whose top is a mapping."""
    document = yaml.safe_load(path.read_text())
    assert isinstance(document, dict), path
    return document


def alerts() -> dict[str, dict[str, Any]]:
    """Alert rules by name."""
    (group,) = load(ALERTS)["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def panels() -> Iterator[dict[str, Any]]:
    """The dashboard's panels."""
    yield from json.loads(DASHBOARD.read_text())["panels"]


def expressions() -> list[tuple[str, str]]:
    """(title, PromQL) of every expression of the dashboard, with Grafana's variables unchanged."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = [
        (panel["title"], target["expr"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]
    return found + [(note["name"], note["expr"]) for note in dashboard["annotations"]["list"]]


def metric_names(expression: str) -> set[str]:
    """The metrics that an expression reads."""
    without_texts = re.sub(r'"[^"]*"', '""', expression)
    return set(re.findall(r"\b(?:hearth|process)_\w+|\bup\b", without_texts))
