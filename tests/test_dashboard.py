"""The dashboard: as the script writes it, by Grafana's rules, and with data in every panel.

The rules are those of Grafana's dashboard-linter. That there is data is seen by a Prometheus which
scrapes two tunnels, one of them with workers, under load and in trouble.
"""

import contextlib
import json
import math
import re
import select
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import combinations, count, pairwise
from pathlib import Path
from typing import Any

import authority
import faults
import pytest
import servers
from prometheus import Prometheus, Series

from memtunnel.ops.exposition import FAMILIES, Exposition
from memtunnel.wire import binary
from memtunnel.wire.binary import Frame, Opcode, Status
from memtunnel.worker import new_metrics

GRAFANA = Path(__file__).parent.parent / "grafana"
DASHBOARD = json.loads((GRAFANA / "memtunnel.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [(panel["title"], each["expr"]) for panel in PANELS for each in panel["targets"]]
LABELS = {family.name: set(family.labels) for family in FAMILIES}
#: By name, the type of each metric.
TYPES = {
    metric.name + ("_total" if metric.type == "counter" else ""): metric.type
    for metric in Exposition(new_metrics(None)).registry.collect()
}
#: A metric in an expression: what is before it, its name, its matchers, its range.
METRIC = re.compile(r"([\w.]*\()?\b((?:memtunnel|process|python)_\w+)(?:\{([^}]*)\})?(\[[^]]*\])?")
UNITS = {"reqps", "cps", "Bps", "bytes", "s", "d", "percentunit", "short", "none", "bool_yes_no"}


def family(name: str) -> str:
    """The metric that a series belongs to."""
    whole = re.sub(r"_(bucket|sum|count)$", "", name)
    return whole if TYPES.get(whole) == "histogram" else name


def named() -> Iterator[tuple[str, str, str, str, str]]:
    """Each metric on the dashboard: the panel, and as `METRIC` has it."""
    for title, expression in TARGETS:
        for before, name, matchers, span in METRIC.findall(expression):
            yield title, before, name, matchers, span


# What it is


def test_the_file_is_what_the_script_writes(tmp_path: Path) -> None:
    script = shutil.copy(GRAFANA / "generate.py", tmp_path)
    subprocess.run([sys.executable, script], check=True, timeout=30)
    written = (tmp_path / "memtunnel.json").read_text()
    assert written == (GRAFANA / "memtunnel.json").read_text()


def test_it_is_found_by_its_name_and_changed_in_the_repository_only() -> None:
    got = [DASHBOARD[key] for key in ("uid", "title", "schemaVersion", "editable")]
    assert got == ["memtunnel", "memtunnel", 39, False]


def test_whose_data_it_shows_is_chosen_by_variables() -> None:
    datasource, *others = DASHBOARD["templating"]["list"]
    assert (datasource["name"], datasource["type"]) == ("datasource", "datasource")
    assert datasource["query"] == "prometheus"
    assert [each["name"] for each in others] == ["job", "instance", "server"]
    for each in others:
        assert (each["type"], each["label"], each["refresh"]) == ("query", each["name"], 2)
        assert each["datasource"]["uid"] == "${datasource}"
        assert (each["multi"], each["includeAll"], each["allValue"]) == (True, True, ".+")
        query = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", each["query"]["query"])
        assert query is not None
        assert query[2] == each["name"]
        assert query[1] in TYPES
    assert all(
        part["datasource"]["uid"] == "${datasource}"
        for panel in PANELS
        for part in (panel, *panel["targets"])
    )


def test_every_panel_says_what_it_shows_and_what_to_make_of_it() -> None:
    titles = [panel["title"] for panel in PANELS]
    for panel in PANELS:
        assert panel["title"]
        assert re.fullmatch(r"[A-Z0-9].{40,}\.", panel["description"].capitalize()), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["targets"], panel["title"]
        references = [each["refId"] for each in panel["targets"]]
        assert len(set(references)) == len(references)
    assert len(PANELS) > 40
    doubles = {title for title in titles if titles.count(title) > 1}
    assert doubles == {"Certificates expire in"}, "a number above, and each server below"


def test_panels_have_places_of_their_own() -> None:
    places = {panel["id"]: panel["gridPos"] for panel in DASHBOARD["panels"]}
    assert len(places) == len(DASHBOARD["panels"])
    for place in places.values():
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
    for one, other in combinations(places.values(), 2):
        assert (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        ), (one, other)
    order = [(place["y"], place["x"]) for place in places.values()]
    assert all(before < after for before, after in pairwise(order)), "each row above its panels"


# What it asks


def test_every_metric_exists_and_is_drawn() -> None:
    assert {family(name) for _, _, name, _, _ in named()} == TYPES.keys()


def test_every_metric_is_of_the_tunnels_and_servers_that_are_chosen() -> None:
    for title, _, name, matchers, _ in named():
        asked = matchers.split(", ")
        assert {'job=~"$job"', 'instance=~"$instance"'} <= set(asked), (title, name)
        labels = LABELS.get(family(name), set())
        assert ('server=~"$server"' in asked) == ("server" in labels), (title, name)
        words = {re.split(r"[=!]", each)[0] for each in asked}
        assert words <= {*labels, "job", "instance"}, (title, name)


def test_of_what_is_counted_the_rate_is_drawn_and_of_nothing_else() -> None:
    for title, before, name, _, span in named():
        is_counted = TYPES[family(name)] in ("counter", "histogram")
        assert (before == "rate(") == is_counted, (title, name)
        assert span == ("[$__rate_interval]" if is_counted else ""), (title, name)


def test_quantiles_are_those_of_all_workers_and_tunnels_together() -> None:
    right = r"histogram_quantile\([\d.]+, sum by \(le(, \w+)?\) \(rate\(\w+_bucket\{"
    for title, expression in TARGETS:
        asked = expression.count("histogram_quantile")
        assert len(re.findall(right, expression)) == asked, title


def test_what_is_told_by_worker_is_never_added_up() -> None:
    by_worker = {each.name for each in FAMILIES if each.by_worker}
    asked = dict.fromkeys(by_worker, 0)
    for title, expression in TARGETS:
        for name in by_worker:
            right = re.findall(rf"(?:min|max|count)(?: by \([^)]*\) )?\({name}\b", expression)
            assert len(right) == expression.count(name), title
            asked[name] += len(right)
    assert all(asked.values())


def test_only_gets_are_hit_or_missed() -> None:
    asked = [expression for title, expression in TARGETS if "hit rate" in title.lower()]
    assert len(asked) == 2
    for expression in asked:
        of_commands = expression.count("memtunnel_commands_total")
        assert of_commands >= 2
        assert expression.count('command=~"get|gat"') == of_commands


def test_grafana_finds_the_dashboard_and_its_data() -> None:
    provisioning = GRAFANA / "provisioning"
    dashboards = (provisioning / "dashboards" / "memtunnel.yml").read_text()
    datasources = (provisioning / "datasources" / "prometheus.yml").read_text()
    assert "path: /etc/grafana/dashboards\n" in dashboards
    assert "type: prometheus\n" in datasources
    interval = re.search(r"timeInterval: (\w+)\n", datasources)
    assert interval is not None
    configuration = (GRAFANA / "prometheus" / "prometheus.yml").read_text()
    assert f"scrape_interval: {interval[1]}\n" in configuration


# What it gets

#: Of the two tunnels.
WORKERS = (1, 2)
MAX_CLIENTS = 6
LARGE = 500_000
#: What a server does when it is asked for a key that begins so; the last one keeps its connections.
BREAKS: dict[bytes, faults.Fault] = {b"reset": faults.reset, b"lie": faults.wrong_opaque}
LATE: dict[bytes, faults.Fault] = {b"never": lambda frame, truth: faults.Said(b"")}
#: What may be 0 all the while, and why.
ZERO = {"python_gc_": "it is done after 20,000 new objects, and a tunnel keeps few"}


def by_key(what: dict[bytes, faults.Fault]) -> faults.Fault:
    """Right answers, but to keys that begin with the name of a fault."""

    def fault(frame: Frame, truth: bytes) -> faults.Said:
        return what.get(frame.key.partition(b"-")[0], faults.well)(frame, truth)

    return fault


class Load(threading.Thread):
    """Clients of one tunnel that do what there is to be counted, right and wrong."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self.stopping = False
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            with servers.closing_all([]) as self._clients:
                steady = self._connect()
                self._do_not_read()
                for number in count():
                    if self.stopping:
                        return
                    self._work(steady, number)
                    self._meet_faults(steady, number)
                    self._come_and_go()
        except BaseException as problem:
            self.problem = problem

    def _connect(self) -> servers.Wire:
        client = servers.Wire(self._port)
        self._clients.append(client)
        return client

    def _do_not_read(self) -> None:
        client = self._connect()
        keys = [b"large-%d" % number for number in range(6)]
        for key in keys:
            servers.wait_until(
                lambda key=key: client.set(key, bytes(LARGE)).status == Status.OK, "it is stored"
            )
        client.send(*[binary.request(Opcode.GET, key) for key in keys] * 20)

    def _work(self, client: servers.Wire, number: int) -> None:
        asked = []
        for key in (b"%d-%d" % (number, each) for each in range(10)):
            asked += [binary.request(Opcode.SET, key, extras=bytes(8), value=b"1")]
            asked += [binary.request(Opcode.GET, key), binary.request(Opcode.GET, b"no" + key)]
            asked += [binary.request(Opcode.DELETE, key), binary.request(Opcode.NOOP)]
        client.send(*asked)
        client.read(len(asked))

    def _meet_faults(self, client: servers.Wire, number: int) -> None:
        asked = [
            binary.request(Opcode.GET, b"%b-%d-%d" % (fault, number, each))
            for fault in ([*BREAKS][number % len(BREAKS)], *LATE)
            for each in range(6)
        ]
        client.send(*asked)
        client.read(len(asked))

    def _come_and_go(self) -> None:
        # It is turned away if the ones before it are not seen to have left yet.
        with contextlib.suppress(ConnectionError), servers.closing_all([]) as clients:
            clients.append(client := servers.Wire(self._port))
            client.send(servers.Binary.log_in(servers.USERNAME, servers.PASSWORD))
            client.send(b"\x80" + bytes(23) + b"\x42" * 24)
            client.read(2)
        with servers.closing_all([]) as clients:
            clients += [servers.Wire(self._port) for _ in range(MAX_CLIENTS)]
            turned_away, _, _ = select.select([each.socket for each in clients], [], [], 5)
            assert turned_away


class Stage:
    """What is scraped, and who does."""

    def __init__(self, prometheus: Prometheus, instances: list[str], loads: list[Load]) -> None:
        self.prometheus = prometheus
        self.instances = instances
        self.loads = loads

    def ask(self, expression: str, instance: str) -> list[Series]:
        """What Grafana would get for it."""
        chosen = {"$job": "memtunnel", "$instance": instance, "$server": ".+"}
        for variable, value in {**chosen, "$__rate_interval": "8s"}.items():
            expression = expression.replace(variable, value)
        return self.prometheus.query(expression)


@pytest.fixture(scope="module")
def stage(
    good_pair: authority.Pair, ca_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """One server is memcached; the others do not answer rightly what is asked for a fault's key."""
    folder = tmp_path_factory.mktemp("watched")
    with servers.closing_all([]) as started:

        def start(thing: Any) -> Any:
            started.append(thing)
            return thing.start()

        memcached = start(servers.Memcached(folder / "memcached", pair=good_pair, sasl=True))
        dialled = [memcached]
        for what in (BREAKS, LATE):
            faulty = faults.FaultyServer(good_pair, tmp_path_factory.mktemp("faulty"))
            faulty.fault = by_key(what)
            dialled.append(start(faulty))
        tunnels = [
            start(
                servers.Tunnel(
                    *(f"--server=127.0.0.1:{each.port}=s{n}" for n, each in enumerate(dialled)),
                    f"--ca-file={ca_file}",
                    f"--username={servers.USERNAME}",
                    f"--max-clients={MAX_CLIENTS}",
                    f"--workers={workers}",
                    environ={"MEMTUNNEL_PASSWORD": servers.PASSWORD},
                )
            )
            for workers in WORKERS
        ]
        instances = [f"127.0.0.1:{tunnel.admin}" for tunnel in tunnels]
        rules = GRAFANA / "prometheus" / "alerts.yml"
        prometheus = start(Prometheus(folder, instances, rules))
        for tunnel, workers in zip(tunnels, WORKERS, strict=True):
            connected = len(dialled) * workers
            servers.wait_until(
                lambda tunnel=tunnel, connected=connected: (
                    tunnel.metric("memtunnel_upstream_up") == connected
                ),
                "every worker has a connection to every server",
            )
        loads = [Load(tunnel.port) for tunnel in tunnels]
        for load in loads:
            load.start()
        yield Stage(prometheus, instances, loads)
        for load in loads:
            load.stopping = True
        for load in loads:
            load.join(servers.PATIENCE)
        assert [load.problem for load in loads] == [None] * len(loads)


def test_every_target_has_data_of_a_tunnel_and_of_one_with_workers(stage: Stage) -> None:
    missing = {
        (panel["title"], each["legendFormat"], each["expr"], instance)
        for panel in PANELS
        for each in panel["targets"]
        for instance in stage.instances
    }

    def has_data(legend: str, expression: str, instance: str) -> bool:
        got = stage.ask(expression, instance)
        for label in re.findall(r"{{(\w+)}}", legend):
            assert all(label in each.labels for each in got), expression
        may_be_zero = any(name in expression for name in ZERO)
        return any(not math.isnan(each.value) and (each.value != 0 or may_be_zero) for each in got)

    def all_have() -> bool:
        assert [load.problem for load in stage.loads] == [None] * len(stage.loads)
        for each in list(missing):
            if has_data(*each[1:]):
                missing.remove(each)
        return not missing

    try:
        servers.wait_until(all_have, "every target has data", 120)
    finally:
        assert not missing
    for instance, workers in zip(stage.instances, ({""}, {"1", "2"}), strict=True):
        got = stage.ask('memtunnel_upstream_up{instance=~"$instance"}', instance)
        assert {each.labels.get("worker", "") for each in got} == workers


def test_no_alert_is_wrong_for_what_they_tell(stage: Stage) -> None:
    def rules() -> list[Any]:
        return [
            rule
            for group in stage.prometheus.ask("rules")["groups"]
            for rule in group["rules"]
            if rule["health"] != "unknown"
        ]

    written = (GRAFANA / "prometheus" / "alerts.yml").read_text().count("- alert: ")
    servers.wait_until(lambda: len(rules()) == written, "every alert is evaluated")
    assert [rule["name"] for rule in rules() if rule["health"] != "ok"] == []

    def raised() -> set[str]:
        return {each.labels["alertname"] for each in stage.prometheus.query("ALERTS")}

    # Not yet for so long that anybody is told.
    servers.wait_until(lambda: "MemtunnelDegradedReplies" in raised(), "misses are seen")
    assert "MemtunnelDown" not in raised()
