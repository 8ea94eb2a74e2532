"""A Prometheus of its own for a test, which scrapes tunnels several times a second."""

import contextlib
import json
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import servers

CONFIGURATION = """
global:
  scrape_interval: 250ms
  evaluation_interval: 1s
rule_files:
  - {rules}
scrape_configs:
  - job_name: memtunnel
    static_configs:
      - targets: [{targets}]
"""


class Series(NamedTuple):
    """One line of a result: its labels and its value now."""

    labels: dict[str, str]
    value: float


class Prometheus:
    """`instances` are what is scraped, ``host:port``; `rules` is a file of rules."""

    def __init__(self, folder: Path, instances: list[str], rules: Path) -> None:
        configuration = folder / "prometheus.yml"
        targets = ", ".join(f'"{each}"' for each in instances)
        configuration.write_text(CONFIGURATION.format(rules=rules, targets=targets))
        self._at = f"127.0.0.1:{servers.free_port()}"
        self._command = [servers.need("prometheus"), f"--config.file={configuration}"]
        self._command += [f"--storage.tsdb.path={folder / 'data'}", "--log.level=error"]
        self._command += [f"--web.listen-address={self._at}"]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Prometheus":
        self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
        servers.wait_until(self._is_ready, "Prometheus is ready")
        return self

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(servers.PATIENCE)

    def query(self, expression: str) -> list[Series]:
        """What an expression yields now; fails with its mistake where it is wrong."""
        result = self.ask("query", query=expression)["result"]
        assert all(isinstance(each, dict) for each in result), expression
        return [Series(each["metric"], float(each["value"][1])) for each in result]

    def ask(self, what: str, **parameters: str) -> Any:
        """The answer of its HTTP interface."""
        with self._get(f"/api/v1/{what}?{urllib.parse.urlencode(parameters)}") as answer:
            return json.load(answer)["data"]

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError), self._get("/-/ready") as answer:
            return bool(answer.status == 200)
        return False

    def _get(self, path: str) -> Any:
        try:
            return urllib.request.urlopen(f"http://{self._at}{path}", timeout=10)
        except urllib.error.HTTPError as error:
            if error.code == 503:
                raise
            raise AssertionError(error.read().decode()) from None
