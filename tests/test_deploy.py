"""The files in deploy/: they parse, and what they ask of `stoker serve` exists."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("starlette")
from stoker.cli import serve
from stoker.server.app import GET

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"


def options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve.add_arguments(parser)
    return parser.parse_args(arguments)


def test_docker_commands_are_options_of_serve() -> None:
    """CMD starts a server that the image's port reaches, and the health check asks an endpoint that there is."""
    text = (DEPLOY / "Dockerfile").read_text()
    command, *arguments = json.loads(re.search(r"^CMD (\[.*\])$", text, re.MULTILINE)[1])
    assert command == "serve"
    assert options(arguments).host == "0.0.0.0"
    assert f"EXPOSE {options(arguments).port}" in text
    assert re.search(r"127\.0\.0\.1:\d+(/\w+)", text)[1] in GET


def test_the_images_volume_belongs_to_its_user() -> None:
    """A volume whose folder is not there before is root's, and the server cannot fetch a model into it."""
    text = (DEPLOY / "Dockerfile").read_text()
    volume = re.search(r"^VOLUME (\S+)$", text, re.MULTILINE)[1]
    user = re.search(r"^USER (\S+)$", text, re.MULTILINE)[1]
    assert f"install -d -o {user} -g {user} {volume}\n" in text
    assert text.index(f"install -d -o {user}") < text.index("\nVOLUME")
    assert f"HF_HOME={volume}" in text


def test_the_kubernetes_example() -> None:
    """Every document parses, its arguments are options of serve, its probes ask endpoints that there are, and the drain ends
    before the pod is killed."""
    yaml = pytest.importorskip("yaml")
    found = {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}
    assert set(found) == {"Deployment", "PersistentVolumeClaim", "Service"}
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    command, *arguments = container["args"]
    assert command == "serve"
    given = options(arguments)
    assert given.port == container["ports"][0]["containerPort"]
    assert given.drain_timeout < pod["terminationGracePeriodSeconds"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in GET
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"].items() <= labels.items()


def test_the_systemd_unit(tmp_path: Path) -> None:
    """Its command line is one of serve's, the drain ends in time, and systemd finds nothing wrong with it."""
    text = (DEPLOY / "stoker.service").read_text()
    command = re.search(r"^ExecStart=((?:.*\\\n)*.*)$", text, re.MULTILINE)[1].replace("\\\n", " ")
    program, name, *arguments = shlex.split(command)
    assert (Path(program).name, name) == ("stoker", "serve")
    assert options(arguments).drain_timeout < int(re.search(r"TimeoutStopSec=(\d+)", text)[1])
    if shutil.which("systemd-analyze") is not None:
        unit = tmp_path / "stoker.service"
        unit.write_text(text.replace(program, "/bin/true"))  # it must exist where the unit is looked at
        checked = subprocess.run(
            ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stderr) == (0, "")
