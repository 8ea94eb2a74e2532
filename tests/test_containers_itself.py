"""docs/containers.md on a container engine: the images, and the compose file, as written there."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pages
import pytest
import servers

pytestmark = pytest.mark.full

LEFT_OUT = shutil.ignore_patterns(".*_cache", ".git", ".venv", "build", "dist", "__pycache__")
PROMETHEUS = "http://127.0.0.1:9090/api/v1"
#: Seconds for the engine, which may have to fetch what images are made from.
PATIENCE = 300.0


class Engine:
    """Runs commands in a copy of the repository, with a compose project of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", command],
            cwd=self.folder,
            env=os.environ | {"COMPOSE_PROJECT_NAME": "memtunnel-test"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def succeed(self, command: str) -> str:
        done = self.run(command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def state(self) -> Any:
        """Of the tunnel's container: the engine's JSON."""
        which = self.succeed("docker compose ps --all --quiet memtunnel").strip()
        (found,) = json.loads(self.succeed(f"docker inspect {which}"))
        return found["State"]

    def close(self) -> None:
        self.succeed("docker compose down --volumes --timeout 1")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    servers.need("docker")
    if subprocess.run(["docker", "compose", "ls"], capture_output=True).returncode:
        servers.skip("there is no container engine, or no docker compose")
    folder = tmp_path_factory.mktemp("engine") / "house"
    shutil.copytree(pages.ROOT, folder, ignore=LEFT_OUT)
    return Engine(folder)


def test_the_image_is_made_and_is_the_program(engine: Engine) -> None:
    build, about, check = pages.block("containers.md", "sh", "docker build").splitlines()
    engine.succeed(build)
    assert engine.succeed(about).startswith("memtunnel [options]\n")
    done = engine.run(check)
    assert done.returncode == 1
    assert re.search(r"(?m)^  result   FAILS$", done.stdout), done.stdout + done.stderr
    # Nothing in it is written, and nobody runs it.
    assert engine.succeed(about.replace("--rm", "--rm --read-only --cap-drop ALL"))
    user = "docker run --rm --entrypoint id memtunnel:local -u"
    assert engine.succeed(user) == "65532\n"


@pytest.fixture(scope="module")
def composed(engine: Engine) -> Iterator[Engine]:
    enter, *commands = pages.block("containers.md", "sh", "docker compose").splitlines()
    folder = engine.folder / enter.removeprefix("cd ")
    # Grafana is by itself: its image is large, and comes from one place only.
    up = "docker compose up --build --detach"
    assert up in commands
    commands[commands.index(up)] = f"{up} cache app prometheus"
    with servers.closing_all([Engine(folder)]) as (composed,):
        for command in commands:
            composed.succeed(command)
        yield composed


def served(engine: Engine) -> None:
    """The app has stored and fetched through the tunnel that runs now."""
    since = engine.state()["StartedAt"]
    servers.wait_until(
        lambda: "hello" in engine.succeed(f"docker compose logs --since {since} app"),
        "the app is served",
        PATIENCE,
    )


def asked(path: str) -> Any:
    with urlopen(PROMETHEUS + path, timeout=10) as answer:
        return json.load(answer)["data"]


def test_all_of_it_together(composed: Engine) -> None:
    served(composed)
    assert composed.state()["Health"]["Status"] == "healthy"
    check = composed.succeed("docker compose exec memtunnel memtunnel check")
    assert "1 of 1 servers pass, with --verify full" in check

    def scraped() -> bool:
        found = asked("/targets")["activeTargets"]
        return [target["health"] for target in found] == ["up"]

    servers.wait_until(scraped, "Prometheus has the tunnel's metrics", PATIENCE)
    assert asked("/rules")["groups"]


def test_the_tunnel_ends_in_order_and_the_app_comes_back_with_it(composed: Engine) -> None:
    composed.succeed("docker compose stop memtunnel")
    assert composed.state()["ExitCode"] == 0
    composed.succeed("docker compose start memtunnel")
    served(composed)
    composed.succeed("docker compose restart memtunnel")
    served(composed)


def test_a_container_has_the_tunnel_in_the_network_of_another(engine: Engine) -> None:
    block = pages.block("containers.md", "sh", "--network container:")
    begin, look, end = re.sub(
        r"\b(name |container:|force )memtunnel\b", r"\1memtunnel-test", block
    ).splitlines()
    try:
        engine.succeed(begin)
        servers.wait_until(lambda: "  ready  " in engine.run(look).stdout, "it is ready", PATIENCE)
    finally:
        engine.succeed(end)


def test_a_unix_socket_on_a_volume_serves_another_container(engine: Engine) -> None:
    (listen,) = re.findall(
        r"`(--listen unix:\S+)`", (engine.folder / "docs/containers.md").read_text()
    )
    volume = "--volume memtunnel-test:/run/memtunnel"
    client = "import socket; c = socket.socket(socket.AF_UNIX); "
    client += "c.connect('/run/memtunnel/memcached.sock'); c.sendall(b'version\\r\\n'); "
    client += "print(c.recv(99))"
    try:
        made = f"docker run --detach --name memtunnel-test --read-only {volume} memtunnel:local"
        engine.succeed(f"{made} --demo {listen}")
        app = f"docker run --rm --user 1000 {volume} --entrypoint python memtunnel:local -c"

        def served() -> bool:
            return "VERSION" in engine.run(f'{app} "{client}"').stdout

        servers.wait_until(served, "the app is served", PATIENCE)
    finally:
        engine.run("docker rm --force memtunnel-test")
        engine.run("docker volume rm memtunnel-test")


def test_grafana_has_the_dashboard(composed: Engine) -> None:
    if composed.run("docker compose pull grafana").returncode:
        servers.skip("the image of Grafana cannot be fetched")
    composed.succeed("docker compose up --detach grafana")

    def shown() -> bool:
        try:
            with urlopen("http://127.0.0.1:3000/api/search?query=memtunnel", timeout=10) as answer:
                return bool(json.load(answer))
        except OSError:
            return False

    servers.wait_until(shown, "Grafana has found the dashboard", PATIENCE)
