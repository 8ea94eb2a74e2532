"""The manifests of `deploy/kubernetes`: by Kubernetes' own schemas, and by what the tunnel is."""

import copy
import re
from pathlib import Path
from typing import Any

import manifests
import pytest
import yaml

from memtunnel.config import Config, load
from memtunnel.core import deadlines
from memtunnel.net import downstream

HOUSE = Path(__file__).parent.parent
FOLDER = HOUSE / "deploy" / "kubernetes"
DOCUMENTS = {
    f"{path.stem} {number}": document
    for path in sorted(FOLDER.glob("*.yaml"))
    for number, document in enumerate(manifests.documents(path))
}
#: Of the Prometheus operator, which is no part of Kubernetes.
MONITOR = DOCUMENTS.pop("podmonitor 0")
SECRET = DOCUMENTS["secret 0"]
POD = DOCUMENTS["sidecar 0"]["spec"]["template"]
NODE = DOCUMENTS["daemonset 0"]["spec"]["template"]
APP = DOCUMENTS["daemonset 1"]["spec"]["template"]
PORT = 9152
#: What the program takes besides buffers.
PROGRAM = 128 << 20


def tunnel_of(pod: Any) -> Any:
    """The container of a pod that is the tunnel."""
    spec = pod["spec"]
    (tunnel,) = [
        each for each in spec["initContainers"] + spec["containers"] if each["name"] == "memtunnel"
    ]
    return tunnel


BOTH = pytest.mark.parametrize("pod", [POD, NODE], ids=["sidecar", "node"])


def settings(pod: Any) -> Config:
    """What the tunnel makes of the variables that it is given."""
    tunnel = tunnel_of(pod)
    (source,) = tunnel["envFrom"]
    assert source == {"secretRef": {"name": SECRET["metadata"]["name"]}}
    environ = SECRET["stringData"] | {each["name"]: each["value"] for each in tunnel["env"]}
    # As for any service of that name.
    environ["MEMTUNNEL_SERVICE_HOST"] = "10.0.0.1"
    environ["MEMTUNNEL_PORT"] = "tcp://10.0.0.1:80"
    return load({}, environ)


# By the schemas


@pytest.mark.full
@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_kubernetes_takes_it(document: Any) -> None:
    schema = manifests.kubernetes_schema(document["kind"], document["apiVersion"])
    assert list(manifests.mistakes(schema, document)) == []


@pytest.mark.full
def test_it_is_seen_if_it_does_not() -> None:
    wrong = copy.deepcopy(DOCUMENTS["sidecar 0"])
    wrong["spec"]["template"]["spec"]["initContainers"][0]["livenesProbe"] = {}
    schema = manifests.kubernetes_schema(wrong["kind"], wrong["apiVersion"])
    (mistake,) = manifests.mistakes(schema, wrong)
    assert "livenesProbe" in mistake


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_what_is_selected_is_what_is_made(document: Any) -> None:
    if "template" in document.get("spec", {}):
        labels = document["spec"]["template"]["metadata"]["labels"]
        assert document["spec"]["selector"]["matchLabels"].items() <= labels.items()


# What the tunnel is given


@BOTH
def test_its_settings_are_settings(pod: Any) -> None:
    config = settings(pod)
    assert config.credentials is not None
    # None until somebody sets one: an example's would be everybody's.
    assert config.metrics_token is None
    assert config.metrics == f"tcp:{PORT}:interface=0.0.0.0"
    assert not config.allow_remote
    limit = int(tunnel_of(pod)["resources"]["limits"]["memory"].removesuffix("Mi")) << 20
    assert limit >= config.max_buffer + PROGRAM


@BOTH
def test_it_is_killed_only_where_it_hangs(pod: Any) -> None:
    tunnel = tunnel_of(pod)
    (port,) = tunnel["ports"]
    assert port["containerPort"] == PORT
    probes = [tunnel[name] for name in ("livenessProbe", "startupProbe") if name in tunnel]
    for probe in probes:
        assert probe["httpGet"] == {"path": "/healthz", "port": port["name"]}


@BOTH
def test_it_has_time_to_end(pod: Any) -> None:
    config = settings(pod)
    last = config.request_timeout + deadlines.LONGEST + downstream.LINGER
    assert pod["spec"]["terminationGracePeriodSeconds"] > config.drain_timeout + last


def test_the_app_starts_after_its_sidecar_and_runs_without_the_servers() -> None:
    tunnel = tunnel_of(POD)
    assert tunnel in POD["spec"]["initContainers"]
    assert tunnel["restartPolicy"] == "Always"
    assert "startupProbe" in tunnel
    # That of a sidecar counts for the pod.
    assert "readinessProbe" not in tunnel
    assert all("127.0.0.1" in each or r"\:1" in each for each in settings(POD).listen)


def test_the_apps_of_a_node_have_the_folder_of_its_socket() -> None:
    (listen,) = settings(NODE).listen
    found = re.fullmatch(r"unix:(.*)/(.*):mode=666", listen)
    assert found is not None
    folder, name = found.groups()
    (app,) = APP["spec"]["containers"]
    assert {"name": "CACHE", "value": f"{folder}/{name}"} in app["env"]
    for pod, container in ((NODE, tunnel_of(NODE)), (APP, app)):
        (volume,) = pod["spec"]["volumes"]
        (mount,) = container["volumeMounts"]
        assert (mount["name"], mount["mountPath"]) == (volume["name"], folder)
        assert volume["hostPath"]["path"] == folder


def test_a_pod_with_a_sidecar_asks_for_no_privilege() -> None:
    """What the Pod Security Standards call restricted."""
    spec = POD["spec"]
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert not [volume for volume in spec.get("volumes", ()) if "hostPath" in volume]
    assert not [key for key in spec if key.startswith("host")]
    for container in spec["initContainers"] + spec["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}


@BOTH
def test_it_is_nobody_and_writes_nothing(pod: Any) -> None:
    context = tunnel_of(pod)["securityContext"]
    dockerfile = (HOUSE / "deploy" / "docker" / "Dockerfile").read_text()
    assert f"\nUSER {context['runAsUser']}:{context['runAsGroup']}\n" in dockerfile
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert pod["spec"]["securityContext"].get("runAsNonRoot") or context["runAsNonRoot"]


@BOTH
def test_prometheus_finds_it_and_shows_the_token(pod: Any) -> None:
    (expression,) = MONITOR["spec"]["selector"]["matchExpressions"]
    assert expression["operator"] == "In"
    assert pod["metadata"]["labels"][expression["key"]] in expression["values"]
    (endpoint,) = MONITOR["spec"]["podMetricsEndpoints"]
    (port,) = tunnel_of(pod)["ports"]
    assert endpoint["port"] == port["name"]
    credentials = endpoint["authorization"]["credentials"]
    assert credentials["name"] == SECRET["metadata"]["name"]
    assert credentials["key"] in SECRET["stringData"]
    (relabeling,) = endpoint["relabelings"]
    prometheus = yaml.safe_load((HOUSE / "grafana/prometheus/prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert relabeling == {"targetLabel": "job", "replacement": job["job_name"]}
