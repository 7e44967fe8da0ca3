"""The files of `deploy/`: what they name exists, and a line that they run is neither root nor open to the network.

Neither Docker nor systemd as the first process is needed: what they would do with the files is not run here.
"""

from __future__ import annotations

import configparser
import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from project_paths import ROOT
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope import cli
from flawscope.runtime.line.config_checks import address_of
from flawscope.runtime.line.config_file import read_config
from flawscope.runtime.line.line_config import LineConfig
from flawscope.secrets import is_this_machine
from flawscope.verbs import VERBS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "flawscope-line.service"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
IGNORED = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


class _Keys(dict[str, str]):
    """Keys of a section: of one that stands twice, all values."""

    def __setitem__(self, key: str, value: Any) -> None:
        old = self.get(key)
        super().__setitem__(key, [*old, *value] if isinstance(old, list) and isinstance(value, list) else value)


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(
        dict_type=_Keys, strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",)
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT, encoding="utf-8")
    return parser


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile: (word, rest), lines that go on joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    return found[max(place for place, (word, _) in enumerate(found) if word == "FROM") :]


def check_verb(arguments: list[str]) -> None:
    """Fail unless the arguments begin with verbs that exist."""
    group = VERBS["line"]
    assert arguments[0] == "line"
    assert arguments[1] in group.rows  # type: ignore[union-attr]


class TestUnit:
    def test_its_command_exists(self) -> None:
        program, *arguments = shlex.split(unit()["Service"]["ExecStart"])
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert Path(program).is_absolute()
        assert Path(program).name in project["scripts"]
        check_verb(arguments)

    def test_it_speaks_the_protocol_of_the_line(self) -> None:
        service = unit()["Service"]
        assert service["Type"] == "notify"
        # The line feeds it at half of its time, and turns once a second.
        assert int(service["WatchdogSec"]) >= 10
        assert service["Restart"] == "always"
        assert unit()["Unit"]["StartLimitIntervalSec"] == "0"
        # A signal to the cameras' processes would take images from parts that are open.
        assert service["KillMode"] == "mixed"

    def test_it_is_not_root_and_writes_its_own_folders_alone(self) -> None:
        service = unit()["Service"]
        assert service["User"] not in ("", "root", "0")
        assert service["ProtectSystem"] == "strict"
        assert service["NoNewPrivileges"] == "yes"
        assert service["CapabilityBoundingSet"] == ""
        assert "ReadWritePaths" not in service
        # What the file says in a comment of `state:` is the folder that systemd makes.
        (state,) = re.findall(r"`state: (/\S+)`", UNIT.read_text(encoding="utf-8"))
        assert state == f"/var/lib/{service['StateDirectory']}" == service["WorkingDirectory"]
        assert f"/var/cache/{service['CacheDirectory']}" in service["Environment"]

    def at_home(self, folder: Path) -> Path:
        """Return a copy whose program and users exist on this machine."""
        program = folder / "flawscope"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        text = UNIT.read_text(encoding="utf-8").replace("/opt/flawscope/bin/flawscope", str(program))
        copy = folder / UNIT.name
        copy.write_text(text, encoding="utf-8")
        return copy

    @needs_analyze
    def test_systemd_finds_nothing_wrong_with_it(self, tmp_path: Path) -> None:
        command = ["systemd-analyze", "verify", "--man=no", str(self.at_home(tmp_path))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    @needs_analyze
    def test_systemd_would_find_what_is_wrong(self, tmp_path: Path) -> None:
        copy = self.at_home(tmp_path)
        copy.write_text(copy.read_text().replace("WatchdogSec=30", "WatchdogSec=soon"))
        command = ["systemd-analyze", "verify", "--man=no", str(copy)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert "soon" in done.stderr

    @needs_analyze
    def test_systemd_calls_its_exposure_ok(self) -> None:
        command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(UNIT)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if "unrecognized option" in done.stderr:
            pytest.skip("this systemd-analyze does not look at files")
        assert done.returncode == 0, done.stdout[-400:]  # 2.0 of 10, where 10 is all open


class TestDockerfile:
    def test_the_last_stage_is_not_root_and_has_no_tools(self) -> None:
        stage = last_stage()
        (user,) = (rest for word, rest in stage if word == "USER")
        assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
        words = " ".join(rest for word, rest in stage if word in ("RUN", "COPY"))
        assert not re.search(r"\b(g\+\+|gcc|cmake|ninja|git|curl|wget|sudo|torch)\b", words)
        assert "uninstall --yes pip" in words
        assert all("--from=build" in rest for word, rest in stage if word == "COPY")
        # After the last command that changes the image.
        assert [word for word, _ in stage].index("USER") > max(
            place for place, (word, _) in enumerate(stage) if word == "RUN"
        )

    def test_no_image_is_whatever_is_newest_and_nothing_is_fetched_by_address(self) -> None:
        images = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
        assert all(re.search(r":\d", image) for image in images)
        assert not [rest for word, rest in instructions() if word == "ADD"]
        commands = [re.sub(r"http://127\.0\.0\.1:\d+", "", rest) for _, rest in instructions()]
        assert not [command for command in commands if "http:" in command or "https:" in command]

    def test_what_it_installs_and_runs_exists(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        (extras,) = re.findall(r'"\.\[([\w,-]+)\]"', DOCKERFILE)
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
        assert not {"train", "export", "all"} & set(extras.split(","))
        stage = dict(last_stage())
        entry, command = yaml.safe_load(stage["ENTRYPOINT"]), yaml.safe_load(stage["CMD"])
        assert entry[0] in project["scripts"]
        check_verb([*entry[1:], *command])

    def test_the_health_check_asks_the_address_of_the_line(self) -> None:
        (check,) = (rest for word, rest in last_stage() if word == "HEALTHCHECK")
        (address, path) = re.findall(r"http://([\d.:]+)(/\w+)'", check)[0]
        assert read_config(DEPLOY / "line.yml").config.http.listen == address  # type: ignore[union-attr]
        routes = (ROOT / "runtime" / "line" / "http" / "routes" / "state.py").read_text(encoding="utf-8")
        assert f'Api("GET", "{path}", ""' in routes, "whoever asks has no login"
        assert dict(last_stage())["EXPOSE"] == address.partition(":")[2]
        compile(re.findall(r'"(import [^"]*)"', check)[0], "health check", "exec")

    def test_all_that_the_wheel_needs_is_sent_and_nothing_else(self) -> None:
        allowed = [line[1:] for line in IGNORED if line.startswith("!")]
        assert IGNORED[IGNORED.index("*") :].count("*") == 1
        assert all((ROOT / path).exists() for path in allowed)
        rooms = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flawscope"]["rooms"]
        assert {"core", *rooms} <= set(allowed)
        for secret in (".git", ".venv", "deploy/bundles", "state", "line.env"):
            assert not any(fnmatch.fnmatch(secret, path) for path in allowed)


class TestCompose:
    @pytest.mark.parametrize("name", COMPOSE["services"])
    def test_a_service_has_no_rights_that_it_does_not_need(self, name: str) -> None:
        service = COMPOSE["services"][name]
        assert not service.get("privileged")
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert not {"cap_add", "devices", "pid", "ipc", "userns_mode"} & set(service)
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not any("docker.sock" in str(volume) for volume in service["volumes"])

    @pytest.mark.parametrize("name", COMPOSE["services"])
    def test_what_is_mounted_from_the_folder_is_read_only_and_there(self, name: str) -> None:
        for volume in COMPOSE["services"][name]["volumes"]:
            source, target, *mode = volume.split(":")
            assert Path(target).is_absolute()
            if source.startswith("."):
                assert mode == ["ro"]
                assert (DEPLOY / source).exists() or source == "./bundles", "bundles are put there by the user"
            else:
                assert source in COMPOSE["volumes"]

    def test_nothing_listens_to_other_machines(self) -> None:
        for service in COMPOSE["services"].values():
            assert "ports" not in service  # with the network of the host they would mean nothing
            assert service["network_mode"] == "host"
        config = read_config(DEPLOY / "line.yml").config
        assert config.http is not None
        assert is_this_machine(address_of(config.http.listen)[0])
        listeners = re.findall(r"^listener (\d+)(.*)$", (DEPLOY / "mosquitto.conf").read_text(), re.MULTILINE)
        assert [host.strip() for _, host in listeners] == ["127.0.0.1"]

    def test_line_and_broker_meet(self) -> None:
        (port,) = re.findall(r"^listener (\d+)", (DEPLOY / "mosquitto.conf").read_text(), re.MULTILINE)
        (sink,) = read_config(DEPLOY / "line.yml").config.sinks
        assert (sink.host, sink.port) == ("127.0.0.1", int(port))  # type: ignore[union-attr]

    def test_paths_of_the_configuration_are_mounted(self) -> None:
        config: LineConfig = read_config(DEPLOY / "line.yml").config
        targets = [volume.split(":")[1] for volume in COMPOSE["services"]["line"]["volumes"]]
        assert str(config.line.state) in targets
        assert str(config.stations[0].views[0].bundle.parent) in targets
        assert yaml.safe_load(dict(last_stage())["CMD"])[-1] in targets
        build = COMPOSE["services"]["line"]["build"]
        assert (DEPLOY / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()

    def test_the_configuration_passes_the_check(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = (DEPLOY / "line.yml").read_text().replace("/state", "state").replace("/bundles/", "")
        # No broker here, and the port may be taken.
        text = text.split("sinks:")[0].replace("8710", "0")
        (tmp_path / "line.yml").write_text(text)
        write_tiny_bundle(tmp_path / "part.flaw", thresholds=tiny_thresholds())
        assert cli.run(["line", "check", str(tmp_path / "line.yml")]) == 0, capsys.readouterr().out


@pytest.mark.skipif(shutil.which("mosquitto") is None, reason="mosquitto is not installed")
def test_the_broker_takes_its_configuration(tmp_path: Path) -> None:
    text = (DEPLOY / "mosquitto.conf").read_text().replace("1883", "0").replace("/mosquitto/data/", f"{tmp_path}/")
    (tmp_path / "mosquitto.conf").write_text(text)
    # A port of 0 is refused after the file was read: it says so, and nothing of unknown words.
    command = ["mosquitto", "-c", str(tmp_path / "mosquitto.conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert "Unknown configuration" not in done.stderr
    assert done.returncode != 0
