"""The images and the compose file of `deploy/docker`, as far as it goes without an engine."""

import copy
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import manifests
import pytest
import servers
import yaml

from memtunnel.config import load

HOUSE = Path(__file__).parent.parent
DOCKER = HOUSE / "deploy" / "docker"
DOCKERFILES = (DOCKER / "Dockerfile", DOCKER / "memcached" / "Dockerfile")
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCS = (HOUSE / "docs" / "containers.md").read_text()
#: An image with a version of three numbers, or of two for Debian's.
PINNED = r"[a-z/]+:v?\d+\.\d+(\.\d+)?(-[a-z-]+)?"


def instructions(path: Path) -> list[tuple[str, str]]:
    """A Dockerfile's instructions, each with what follows it, on one line."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines) if name]


# The images


@pytest.mark.parametrize("path", DOCKERFILES, ids=["memtunnel", "memcached"])
def test_a_linter_has_nothing_to_say(path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), "--no-color", path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=["memtunnel", "memcached"])
def test_it_is_nobody_who_runs_what_is_in_it(path: Path) -> None:
    told = instructions(path)
    (user,) = [rest for name, rest in told if name == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    for name, rest in told:
        if name == "FROM":
            assert re.fullmatch(PINNED + "( AS build)?", rest), rest
        if name in ("ENTRYPOINT", "CMD"):
            assert rest.startswith("["), "a shell would not pass signals on"


def test_the_program_is_what_runs_and_what_is_stopped() -> None:
    told = dict(instructions(DOCKER / "Dockerfile"))
    assert told["ENTRYPOINT"] == '["memtunnel"]'
    assert told["STOPSIGNAL"] == "SIGTERM"
    assert "twistd --help" in told["RUN"]


def test_only_what_the_package_is_made_of_goes_into_the_image() -> None:
    lines = (HOUSE / ".dockerignore").read_text().splitlines()
    assert [line for line in lines if line == "*"]
    given = {line[1:] for line in lines if line.startswith("!")}
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    script = "bin/with_memtunnel"
    assert given == {"pyproject.toml", "hatch_build.py", "README.md", "LICENSE", script, *packages}
    left_out = [line for line in lines if line.startswith("**/")]
    assert any(fnmatch("twisted/plugins/dropin.cache", line) for line in left_out)


def health_check(admin: int) -> int:
    """Run the image's own check on a port of the admin's; its exit status."""
    (command,) = [
        rest for name, rest in instructions(DOCKER / "Dockerfile") if name == "HEALTHCHECK"
    ]
    words = yaml.safe_load(command.partition(" CMD ")[2])
    assert words[0] == "python"
    assert words[-1].count(" 9152,") == 1
    script = words[-1].replace(" 9152,", f" {admin},")
    run = [sys.executable, *words[1:-1], script]
    # As an engine sets it that has a proxy for what its containers fetch.
    environ = os.environ | {"http_proxy": "http://127.0.0.1:1"}
    done = subprocess.run(run, env=environ, stderr=subprocess.DEVNULL, timeout=servers.PATIENCE)
    return done.returncode


def test_the_health_check_says_whether_it_lives(started: list[Any]) -> None:
    tunnel = servers.Tunnel("--demo")
    started.append(tunnel)
    tunnel.start()
    assert health_check(tunnel.admin) == 0
    tunnel.stop()
    assert health_check(tunnel.admin) == 1


# The compose file


@pytest.mark.full
def test_the_compose_file_is_one() -> None:
    assert list(manifests.mistakes(manifests.compose_schema(), COMPOSE)) == []
    wrong = copy.deepcopy(COMPOSE)
    wrong["services"]["memtunnel"]["restrat"] = "always"
    assert list(manifests.mistakes(manifests.compose_schema(), wrong)) != []


def test_what_is_mounted_and_built_is_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source, target, *_ = volume.split(":")
            assert source in COMPOSE["volumes"] or (DOCKER / source).exists(), source
            assert target.startswith("/")
        build = service.get("build")
        if build is not None:
            context = DOCKER / build["context"]
            assert (context / build.get("dockerfile", "Dockerfile")).exists()
        for secret in service.get("secrets", ()):
            assert secret in COMPOSE["secrets"]
    built = {service["image"] for service in SERVICES.values() if "build" in service}
    for service in SERVICES.values():
        assert service["image"] in built or re.fullmatch(PINNED, service["image"])


def test_what_it_wants_in_the_environment_is_told() -> None:
    text = (DOCKER / "compose.yaml").read_text()
    wanted = set(re.findall(r"\$\{(\w+):\?\}", text)) | set(
        re.findall(r"environment: (\w+)$", text, re.M)
    )
    assert set(re.findall(r"([A-Z_]+)=%s", DOCS)) == wanted


def test_the_tunnels_settings_are_settings(tmp_path: Path, ca_file: Path) -> None:
    service = SERVICES["memtunnel"]
    given = {
        name: re.sub(r"\$\{(\w+):\?\}", "secret", value).replace(
            "/certificates/ca.pem", str(ca_file)
        )
        for name, value in service["environment"].items()
    }
    config = load({}, given)
    assert config.credentials is not None
    assert config.metrics_token is not None
    assert config.metrics == "tcp:9152:interface=0.0.0.0"
    (server,) = config.servers
    assert server.host in SERVICES
    # The app has the tunnel's network, and nobody beyond it can connect.
    assert SERVICES["app"]["network_mode"] == "service:memtunnel"
    assert all("127.0.0.1" in each or "1]" in each or r"\:1" in each for each in config.listen)
    assert int(service["stop_grace_period"].removesuffix("s")) > 2 * config.drain_timeout


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    for volume in SERVICES["prometheus"]["volumes"]:
        source, target, _ = volume.split(":")
        shutil.copy(DOCKER / source, tmp_path / Path(target).name)
    text = (tmp_path / "prometheus.yml").read_text()
    (tmp_path / "token").write_text("secret")
    assert "/run/secrets/metrics-token" in text
    assert "metrics-token" in SERVICES["prometheus"]["secrets"]
    (tmp_path / "prometheus.yml").write_text(text.replace("/run/secrets/metrics-token", "token"))
    done = subprocess.run(
        [servers.need("promtool"), "check", "config", "prometheus.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9]\d* rules found", done.stdout)
    (job,) = yaml.safe_load(text)["scrape_configs"]
    assert job["job_name"] == "memtunnel"
    assert job["static_configs"] == [{"targets": ["memtunnel:9152"]}]


def test_grafana_finds_its_dashboard_and_prometheus() -> None:
    mounted = dict(each.split(":")[:2] for each in SERVICES["grafana"]["volumes"])
    provisioning = DOCKER / next(key for key, value in mounted.items() if "provisioning" in value)
    (provider,) = yaml.safe_load((provisioning / "dashboards/memtunnel.yml").read_text())[
        "providers"
    ]
    assert provider["options"]["path"] + "/memtunnel.json" in mounted.values()
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"


# What runs in its containers


class Cache:
    """The compose file's memcached, by its own scripts."""

    def __init__(self, folder: Path) -> None:
        for program in ("memcached", "saslpasswd2", "openssl", "hostname"):
            servers.need(program)
        scripts = DOCKER / "memcached"
        name, where = SERVICES["certificates"]["command"]
        assert where == SERVICES["cache"]["environment"]["CERTIFICATES"]
        assert name == SERVICES["memtunnel"]["environment"]["MEMTUNNEL_SERVER"].split(":")[0]
        self.name = name
        for _ in range(2):  # the second time everything is there already
            make = [scripts / "certificates.sh", name, folder]
            subprocess.run(make, check=True, timeout=servers.PATIENCE)
        self.ca_file = folder / "ca.pem"
        self.port = servers.free_port()
        (folder / "password").write_text(servers.PASSWORD + "\n")
        environ = SERVICES["cache"]["environment"] | {
            "PASSWORD_FILE": str(folder / "password"),
            "CERTIFICATES": str(folder),
            "STATE": str(folder),
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }
        more = ["--user=root", "--listen=127.0.0.1", f"--port={self.port}"]
        command = [scripts / "start.sh", *SERVICES["cache"]["command"], *more]
        self.process = subprocess.Popen(command, env=environ)
        servers.wait_until(lambda: servers.connects(self.port), "memcached listens")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(servers.PATIENCE)


def test_the_tunnel_is_served_by_the_memcached_beside_it(
    started: list[Any], tmp_path: Path, connect: Callable[..., Any]
) -> None:
    cache = Cache(tmp_path)
    started.append(cache)
    assert (tmp_path / "key.pem").stat().st_mode & 0o077 == 0
    settings = SERVICES["memtunnel"]["environment"]
    tunnel = servers.Tunnel(
        f"--server=127.0.0.1:{cache.port}",
        # By the name that the certificate bears, which only the network of compose resolves.
        f"--tls-name=127.0.0.1={cache.name}",
        f"--ca-file={cache.ca_file}",
        f"--username={settings['MEMTUNNEL_USERNAME']}",
        servers.PATIENT,
        environ={"MEMTUNNEL_PASSWORD": servers.PASSWORD},
    )
    started.append(tunnel)
    tunnel.start().wait_ready()
    # What the app does.
    python, flag, script = SERVICES["app"]["entrypoint"]
    assert (python, flag) == ("python", "-c")
    script = script.replace("11211", str(tunnel.port)).replace("time.sleep(5)", "break")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, timeout=servers.PATIENCE
    )
    assert b"STORED" in done.stdout
    assert b"hello" in done.stdout
