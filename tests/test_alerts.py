"""The alerts: well made, about what there is, and raised when they should be and only then.

When each is raised is shown in `alerts_test.yml`, for promtool; that a real tunnel has what they
ask for, in `test_dashboard`.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import servers

from memtunnel.ops.exposition import FAMILIES

FOLDER = Path(__file__).parent.parent / "grafana" / "prometheus"
ALERTS = (FOLDER / "alerts.yml").read_text()
CASES = (FOLDER / "alerts_test.yml").read_text()
#: Each with what is said of it, up to the next one.
RULES = re.split(r"^ +(?=- alert: )", ALERTS, flags=re.MULTILINE)[1:]
LABELS = {family.name: set(family.labels) for family in FAMILIES}


def promtool(*arguments: str, folder: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    command = [servers.need("promtool"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def name_of(rule: str) -> str:
    return rule.split()[2]


def test_prometheus_takes_the_configuration_and_the_alerts() -> None:
    done = promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


def test_each_is_raised_when_it_should_be_and_only_then() -> None:
    done = promtool("test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    raised = re.findall(r"alertname: (\w+)\n +eval_time: \w+\n +exp_alerts:\n", CASES)
    assert set(raised) == {name_of(rule) for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_it_says_what_it_means_and_how_bad_it_is(rule: str) -> None:
    assert re.fullmatch(r"Memtunnel[A-Z]\w+", name_of(rule))
    assert len(re.findall(r"^ +for: \d+[mh]$", rule, re.MULTILINE)) == 1
    assert len(re.findall(r"^ +severity: (?:warning|critical)$", rule, re.MULTILINE)) == 1
    assert "runbook_url" not in rule
    reference = re.search(r"annotations: \*(\w+)$", rule, re.MULTILINE)
    if reference is not None:
        (rule,) = (other for other in RULES if f"annotations: &{reference[1]}\n" in other)
    for annotation in ("summary", "description"):
        assert re.search(rf"^ +{annotation}: (>-\n +)?\S.*", rule, re.MULTILINE), annotation


def test_what_they_ask_for_exists() -> None:
    asked = re.findall(r"\b(memtunnel_\w+)(?:\{([^}]*)\})?", ALERTS)
    assert len(asked) >= len(RULES)
    for name, matchers in asked:
        name = name.removesuffix("_bucket")
        assert name in LABELS
        labels = {re.split(r"[=!]", each)[0] for each in matchers.split(", ") if each}
        assert labels <= LABELS[name], name


NEVER = r"\b(memtunnel_|up\{)", r"absent_\1"
AT_ONCE = r"for: \w+", "for: 0s"


@pytest.mark.parametrize("change", [NEVER, AT_ONCE], ids=["never", "at once"])
def test_it_is_seen_if_one_is_never_raised_or_too_soon(
    change: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "alerts.yml").write_text(re.sub(*change, ALERTS))
    shutil.copy(FOLDER / "alerts_test.yml", tmp_path)
    done = promtool("test", "rules", "alerts_test.yml", folder=tmp_path)
    assert done.returncode == 1
    labels = r'alertname="(\w+)"[^}]*severity="(\w+)"'
    assert set(re.findall(labels, done.stdout + done.stderr)) == {
        (name_of(rule), severity)
        for rule in RULES
        for severity in re.findall(r"severity: (\w+)", rule)
    }


def test_each_is_explained() -> None:
    docs = (FOLDER.parent.parent / "docs" / "observability.md").read_text()
    told = re.findall(r"(?m)^\| `(Memtunnel\w+)` \|", docs)
    assert told == list(dict.fromkeys(map(name_of, RULES)))
