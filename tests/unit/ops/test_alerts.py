"""Alert rules: every metric they name exists, every alert has a runbook, and promtool accepts them if it is there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.telemetry import REGISTRY, exposition

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "ops" / "alerts").glob("*.yml"))


def rules() -> list[dict[str, Any]]:
    """Read every rule of every file."""
    found = [yaml.safe_load(file.read_text()) for file in FILES]
    return [rule for file in found for group in file["groups"] for rule in group["rules"]]


def metrics_of(expression: str) -> set[str]:
    """Name the metrics of an expression."""
    return set(re.findall(r"\bsoma_[a-z0-9_]+", expression))


def known_metrics() -> set[str]:
    """Name every series that /metrics can print."""
    described = re.findall(r"^# TYPE (\S+) (\S+)$", exposition().decode(), re.MULTILINE)
    parts = {"histogram": ("_bucket", "_sum", "_count")}
    return {name + part for name, kind in described for part in parts.get(kind, ("",))}


def promtool(*words: str) -> None:
    """Have promtool look at a file, where there is one."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("there is no promtool on this machine")
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_rules_to_check() -> None:
    assert len(rules()) >= 6


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_names_metrics_that_exist_and_a_runbook_that_names_it(rule: dict[str, Any]) -> None:
    asked = metrics_of(rule["expr"])
    assert asked
    assert asked <= known_metrics()
    page = (ROOT / rule["annotations"]["runbook"]).read_text()
    assert rule["alert"] in page
    assert "## What to do" in page
    assert rule["annotations"]["summary"].endswith(".")
    assert rule["labels"]["severity"] in ("warning", "critical")


def test_a_metric_that_does_not_exist_would_be_seen() -> None:
    assert not metrics_of("rate(soma_follower_records[5m]) > 0") <= known_metrics()
    assert metrics_of("rate(soma_follower_records_total[5m]) > 0") <= known_metrics()
    assert REGISTRY.get_sample_value("soma_reconciliation_drift") is not None


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_promtool_accepts_the_rules(file: Path) -> None:
    promtool("check", "rules", str(file))


def test_each_alert_fires_when_it_must_and_only_then() -> None:
    cases = Path(__file__).with_name("alerts_test.yml")
    tried = {
        case["alertname"]
        for test in yaml.safe_load(cases.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert tried == {rule["alert"] for rule in rules()}
    promtool("test", "rules", str(cases))
