"""The files of a fleet: dashboard, Prometheus, compose and Kubernetes name what exists, and their linters pass.

Grafana, Prometheus as a server, Docker, a cluster and Triton are not run here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from project_paths import ROOT
from tiny_bundle import tiny_thresholds, write_tiny_bundle

pytest.importorskip("prometheus_client", reason="prometheus_client is not installed (extra `line`)")

import fleet_dashboard
from grafana_model import DASHBOARD
from promql_names import OTHERS, SCRAPED, metrics_of_a_line, names_in

from flawscope.runtime.line.config_file import read_config

DEPLOY = ROOT / "deploy"
PROMETHEUS, FLEET, KUBERNETES = DEPLOY / "prometheus", DEPLOY / "fleet", DEPLOY / "kubernetes"
BOARD: dict[str, Any] = json.loads(fleet_dashboard.FILE.read_text(encoding="utf-8"))
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "flawscope-rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
COMPOSE: dict[str, Any] = yaml.safe_load((FLEET / "compose.yaml").read_text())
MANIFESTS: list[tuple[str, dict[str, Any]]] = [
    (path.name, document)
    for path in sorted(KUBERNETES.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]


def program(name: str) -> str:
    """Return the path of a program; skips where it is not installed."""
    if (found := shutil.which(name)) is None:
        pytest.skip(f"{name} is not installed")
    return found


def check(*command: str | Path, folder: Path = ROOT) -> str:
    """Run a checker, which must find nothing; returns what it printed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def of_board() -> Iterator[tuple[str, str]]:
    """Yield title and expression of each query of the dashboard."""
    for panel in BOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def plain(expression: str) -> str:
    """Return an expression of the dashboard as Grafana would send it."""
    return expression.replace("$__rate_interval", "5m").replace("$line", ".*").replace("$station", ".*")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Name -> labels, of all that Prometheus has: the line's metrics, those of others, and what rules record."""
    found = {**metrics_of_a_line(tmp_path_factory.mktemp("line")), **OTHERS}
    for rule in RULES:
        if "record" in rule:
            (grouped,) = set(re.findall(r"by \(([^)]*)\)", rule["expr"])) or {""}
            found[rule["record"]] = {name.strip() for name in grouped.split(",")} - {"le"}
    return found


def check_names(expression: str, known: dict[str, set[str]]) -> None:
    """Fail unless all metrics of an expression are known, and all labels are labels of them."""
    metrics, labels = names_in(expression)
    assert metrics, f"{expression}: no metric is named"
    assert metrics <= set(known), f"{expression}: unknown metrics: {metrics - set(known)}"
    there = set().union(SCRAPED, *(known[name] for name in metrics))
    assert labels <= there, f"{expression}: unknown labels: {labels - there}"


class TestNames:
    """What an expression names, by the check itself."""

    def test_an_unknown_metric_or_label_is_found(self, known: dict[str, set[str]]) -> None:
        good = 'sum by (line, reason) (rate(flawscope_parts_total{station=~"a", verdict!="accept"}[5m])) / 2 > 1e3'
        check_names(good, known)
        for wrong in (
            good.replace("parts_total", "part_total"),
            good.replace("reason)", "cause)"),
            good.replace("station", "place"),
            good.replace("_total", ""),
        ):
            with pytest.raises(AssertionError, match="unknown"):
                check_names(wrong, known)

    def test_all_metrics_of_a_line_are_on_the_page(self, known: dict[str, set[str]]) -> None:
        page = (ROOT / "docs" / "line-http.md").read_text(encoding="utf-8")
        told = {
            (name, labels or "")
            for name, labels in re.findall(r"`(flawscope_\w+)(?:\{([\w,.]+)\})?`", page.partition("## Metrics")[2])
        }
        ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known if name.startswith("flawscope_")}
        assert {name for name, _ in told} == ours
        for name, labels in told:
            if labels not in ("", "..."):
                has = known.get(name, known.get(f"{name}_sum", set()))
                assert set(labels.split(",")) == has, name


class TestDashboard:
    def test_it_is_that_of_the_tool(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(sys, "argv", ["fleet_dashboard.py", "--check"])
        assert fleet_dashboard.main() == 0
        other = tmp_path / "other.json"
        other.write_text("{}")
        monkeypatch.setattr(fleet_dashboard, "FILE", other)
        assert fleet_dashboard.main() == 1

    def test_it_is_what_grafana_describes(self) -> None:
        jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
        validator = jsonschema.Draft202012Validator(DASHBOARD)
        assert not [f"{list(error.path)}: {error.message}" for error in validator.iter_errors(BOARD)]
        for wrong in ({"schemaVersion": "39"}, {"panels": [{"type": "graph"}]}, {"rows": []}, {"graphTooltip": 3}):
            assert not validator.is_valid({**BOARD, **wrong})

    def test_grafanas_own_model_reads_it_and_loses_nothing(self) -> None:
        """The SDK is made by Grafana of its schemas; fields that these do not have would be gone."""
        pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed")
        from grafana_foundation_sdk.cog import plugins
        from grafana_foundation_sdk.cog.encoder import JSONEncoder
        from grafana_foundation_sdk.models.dashboard import Dashboard

        plugins.register_default_plugins()
        back = json.loads(JSONEncoder().encode(Dashboard.from_json(BOARD)))
        assert _lost(BOARD, back) == []
        assert _lost({**BOARD, "unheard": 1}, json.loads(JSONEncoder().encode(Dashboard.from_json(BOARD))))

    @pytest.mark.parametrize(("title", "expression"), [*of_board()])
    def test_its_queries_name_what_lines_have(self, title: str, expression: str, known: dict[str, set[str]]) -> None:
        check_names(plain(expression), known)
        # One of a line can be chosen by line and, where it has one, by station.
        for name in names_in(plain(expression)).metrics:
            if name.startswith("flawscope") and "triton" not in name:
                assert 'line=~"$line"' in expression
                assert ("$station" in expression) == ("station" in known[name]), title

    def test_legends_and_variables_name_labels(self, known: dict[str, set[str]]) -> None:
        for panel in BOARD["panels"]:
            for target in panel.get("targets", ()):
                metrics = names_in(plain(target["expr"])).metrics
                there = set().union(SCRAPED, *(known[name] for name in metrics))
                assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= there, panel["title"]
        for variable in BOARD["templating"]["list"][1:]:
            query = variable["query"]["query"]
            (name, label) = re.fullmatch(r"label_values\((\w+).*, (\w+)\)", query).groups()  # type: ignore[union-attr]
            assert label == variable["name"]
            assert label in known[name] | SCRAPED

    def test_it_shows_what_a_fleet_has_to(self) -> None:
        shown = set().union(*(names_in(plain(expression)).metrics for _, expression in of_board()))
        assert shown >= {
            "up", "flawscope_ready", "flawscope_parts_total", "flawscope_latency_seconds_bucket",
            "flawscope_skipped_total", "flawscope_late_total", "flawscope_camera_up", "flawscope_drift_psi",
            "flawscope_swaps_total", "flawscope_generation", "flawscope_bundle", "flawscope_rollout_failed",
            "flawscope_disk_free_bytes", "flawscope_sink_behind", "flawscope_sink_errors_total",
        }  # fmt: skip
        assert [variable["name"] for variable in BOARD["templating"]["list"]] == ["datasource", "line", "station"]

    def test_no_panel_lies_on_another(self) -> None:
        taken: set[tuple[int, int]] = set()
        for panel in BOARD["panels"]:
            place = panel["gridPos"]
            cells = {
                (place["x"] + column, place["y"] + row) for column in range(place["w"]) for row in range(place["h"])
            }
            assert max(column for column, _ in cells) < 24
            assert not cells & taken, panel["title"]
            taken |= cells
        numbers = [panel["id"] for panel in BOARD["panels"]]
        assert len(set(numbers)) == len(numbers)

    def test_prometheus_parses_its_queries(self, tmp_path: Path) -> None:
        promtool = program("promtool")
        rules = [
            {"record": f"board:query:{number}", "expr": plain(expression)}
            for number, (_, expression) in enumerate(of_board())
        ]
        (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
        assert f"{len(rules)} rules found" in check(promtool, "check", "rules", tmp_path / "rules.yml")

    def test_a_parser_of_promql_parses_all_expressions(self) -> None:
        parser = pytest.importorskip("promql_parser", reason="promql-parser is not installed")
        for expression in (*(plain(one) for _, one in of_board()), *(rule["expr"] for rule in RULES)):
            parser.parse(expression)
        with pytest.raises(Exception, match=r"."):
            parser.parse("sum by (line) (rate(flawscope_parts_total[5m])")

    def test_grafana_finds_it_and_its_data(self) -> None:
        provisioning = DEPLOY / "grafana" / "provisioning"
        (provider,) = yaml.safe_load((provisioning / "dashboards" / "flawscope.yml").read_text())["providers"]
        (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
        mounts = dict(volume.split(":")[:2] for volume in COMPOSE["services"]["grafana"]["volumes"])
        assert mounts["../grafana/dashboards"] == provider["options"]["path"]
        assert mounts["../grafana/provisioning"] == "/etc/grafana/provisioning"
        assert source["url"].removeprefix("http://") in str(COMPOSE["services"]["prometheus"]["command"])


def _lost(value: Any, back: Any, where: str = "") -> list[str]:
    """Return the places of what is in a value and not in another one."""
    if isinstance(value, dict):
        there = back if isinstance(back, dict) else {}
        return [one for name in value for one in _lost(value[name], there.get(name, _lost), f"{where}/{name}")]
    if isinstance(value, list) and isinstance(back, list) and len(value) == len(back):
        return [
            one for pair in enumerate(zip(value, back, strict=True)) for one in _lost(*pair[1], f"{where}/{pair[0]}")
        ]
    return [] if value == back else [where]


class TestPrometheus:
    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
    def test_rules_name_what_lines_have(self, rule: dict[str, Any], known: dict[str, set[str]]) -> None:
        check_names(rule["expr"], known)
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("warning", "critical")
            metrics = names_in(rule["expr"]).metrics
            there = set().union(SCRAPED, *(known[name] for name in metrics))
            named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
            assert named
            assert named <= there

    def test_promtool_finds_nothing_wrong(self, tmp_path: Path) -> None:
        promtool = program("promtool")
        folder = tmp_path / "prometheus"
        shutil.copytree(PROMETHEUS, folder)
        (folder / "secrets").mkdir()
        for name in ("line-token", "factory-ca.pem"):  # the user's
            (folder / "secrets" / name).write_text("x")
        check(promtool, "check", "config", "prometheus.yml", folder=folder)
        check(promtool, "test", "rules", "flawscope-rules-test.yml", folder=folder)

    def test_it_asks_the_lines_of_the_fleet(self) -> None:
        targets = yaml.safe_load((PROMETHEUS / "lines-here.yml").read_text())
        found = {one["labels"]["line"]: one["targets"] for one in targets}
        assert set(found) == {"press", "mill"}
        for name, addresses in found.items():
            config = read_config(FLEET / f"{name}.yml").config
            assert config.http is not None
            assert (config.line.name, [config.http.listen]) == (name, addresses)
        assert yaml.safe_load((PROMETHEUS / "lines.yml").read_text()) == [], "those of the user"

    def test_what_leaves_the_machine_is_encrypted(self) -> None:
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        jobs = {job["job_name"]: job for job in config["scrape_configs"]}
        assert jobs["flawscope-lines"]["scheme"] == "https"
        assert jobs["flawscope-lines"]["authorization"]["credentials_file"]
        for name in ("flawscope-lines-here", "triton"):
            (path,) = jobs[name]["file_sd_configs"][0]["files"]
            addresses = [one for row in yaml.safe_load((PROMETHEUS / path).read_text()) for one in row["targets"]]
            assert all(address.startswith("127.0.0.1:") for address in addresses)


class TestCompose:
    @pytest.mark.parametrize("name", COMPOSE["services"])
    def test_a_service_has_no_rights_that_it_does_not_need(self, name: str) -> None:
        service = COMPOSE["services"][name]
        assert not service.get("privileged")
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert not {"cap_add", "devices", "pid", "ipc", "userns_mode", "ports"} & set(service)
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["network_mode"] == "host"
        assert {"pids_limit", "mem_limit"} <= set(service)
        if name not in ("press", "mill"):
            assert re.search(r":v?\d+\.\d+", service["image"]), "no image is whatever is newest"
        for volume in service["volumes"]:
            source, target, *mode = volume.split(":")
            assert Path(target).is_absolute()
            if source.startswith("."):
                assert mode == ([] if source == "./releases" else ["ro"])
                own = source in ("./bundles", "./keys", "./models", "./releases")
                assert own or (FLEET / source).exists(), "bundles, keys and models are put there by the user"
            else:
                assert source in COMPOSE["volumes"]

    def test_its_folders_belong_to_whom_they_must(self) -> None:
        """A line refuses keys of other users than root and its own, and a registry writes as its own user."""
        head = (FLEET / "compose.yaml").read_text().partition("\nname:")[0]
        assert re.search(r"sudo install -D --mode=0644 \S+ deploy/fleet/keys/maker\.pub", head)
        user, _, group = COMPOSE["services"]["registry"]["user"].partition(":")
        assert f"sudo install -d --owner={user} --group={group} deploy/fleet/releases" in head
        assert "./releases:/var/lib/registry" in COMPOSE["services"]["registry"]["volumes"]

    def test_nothing_listens_to_other_machines(self) -> None:
        services = COMPOSE["services"]
        assert {"--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1"} <= set(
            services["triton"]["command"]
        )
        assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
        assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
        assert services["registry"]["environment"]["REGISTRY_HTTP_ADDR"].startswith("127.0.0.1:")
        assert services["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_PASSWORD:?")

    @pytest.mark.parametrize("name", ["press", "mill"])
    def test_its_lines_can_be_read_and_follow_its_registry(self, name: str, tmp_path: Path) -> None:
        config = read_config(FLEET / f"{name}.yml").config
        rollout = config.stations[0].views[0].rollout
        assert rollout is not None
        address = COMPOSE["services"]["registry"]["environment"]["REGISTRY_HTTP_ADDR"]
        assert f"//{address}/" in rollout.source.url  # type: ignore[union-attr]
        targets = [volume.split(":")[1] for volume in COMPOSE["services"][name]["volumes"]]
        assert {"/state", "/bundles", "/keys", "/config/line.yml"} <= set(targets)
        if name == "mill":
            assert config.http is not None
            assert config.http.listen in str(COMPOSE["services"][name]["healthcheck"]["test"])

    @pytest.mark.parametrize("path", ["deploy/compose.yaml", "deploy/fleet/compose.yaml"])
    def test_it_is_what_the_compose_specification_has(self, path: str) -> None:
        pytest.importorskip("check_jsonschema", reason="check-jsonschema, which has that schema, is not installed")
        check(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", path)


class TestKubernetes:
    @pytest.mark.parametrize(
        ("file", "manifest"), MANIFESTS, ids=lambda one: one if isinstance(one, str) else one["kind"]
    )
    def test_it_is_what_kubernetes_has(self, file: str, manifest: dict[str, Any]) -> None:
        validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
        for version in ("1.30", "1.33"):
            validate.validate(manifest, version, strict=True)

    def test_the_check_would_find_what_is_wrong(self) -> None:
        validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
        deployment = _kind("Deployment")
        with pytest.raises(validate.ValidationError):
            validate.validate({**deployment, "spec": {**deployment["spec"], "replica": 2}}, "1.33", strict=True)

    @pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
    def test_pods_are_neither_root_nor_open(self, kind: str) -> None:
        pod = _kind(kind)["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"requests", "limits"} <= set(container["resources"])
        assert re.search(r":\d+\.\d+", container["image"])
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"] for volume in pod["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in _kind(kind)["spec"].get("volumeClaimTemplates", ())}
        assert mounts == volumes

    def test_private_files_of_a_line_stay_private(self) -> None:
        """By default each mount gives the group all files: a line refuses a private key with the mode 0660."""
        context = _kind("StatefulSet")["spec"]["template"]["spec"]["securityContext"]
        assert context["fsGroupChangePolicy"] == "OnRootMismatch"

    def test_labels_meet(self) -> None:
        for kind in ("Deployment", "StatefulSet"):
            spec = _kind(kind)["spec"]
            labels = spec["template"]["metadata"]["labels"]
            assert spec["selector"]["matchLabels"] == labels
            policies = [one for _, one in MANIFESTS if one["kind"] == "NetworkPolicy"]
            assert sum(one["spec"]["podSelector"]["matchLabels"] == labels for one in policies) == 1
        assert _kind("Service")["spec"]["selector"] == _kind("Deployment")["spec"]["template"]["metadata"]["labels"]

    def test_probes_ask_what_triton_has(self) -> None:
        (container,) = _kind("Deployment")["spec"]["template"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002}
        paths = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
        assert {probe["path"] for probe in paths.values()} == {"/v2/health/ready", "/v2/health/live"}
        assert paths["liveness"]["path"] == "/v2/health/live", "a model that fails is nothing that a restart mends"

    def test_it_grows_with_the_time_that_requests_wait(self) -> None:
        (metric,) = _kind("HorizontalPodAutoscaler")["spec"]["metrics"]
        (rule,) = yaml.safe_load(_of("prometheus-adapter.yaml", "ConfigMap")["data"]["config.yaml"])["rules"]
        assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
        (container,) = _kind("Deployment")["spec"]["template"]["spec"]["containers"]
        ages = [arg for arg in container["args"] if arg.startswith("--grpc-max-connection-age=")]
        assert ages == ["--grpc-max-connection-age=60000"], (
            "clients that keep their connections stay on the old servers"
        )
        query = rule["metricsQuery"].replace("<<.LabelMatchers>>", 'model="m"').replace("<<.GroupBy>>", "instance")
        check_names(query, OTHERS)
        assert "nv_inference_queue_duration_us" in query

    def test_the_configuration_of_its_line_can_be_read(self, tmp_path: Path) -> None:
        text = _of("line.yaml", "ConfigMap")["data"]["line.yml"]
        (tmp_path / "line.yml").write_text(text)
        config = read_config(tmp_path / "line.yml").config
        (container,) = _kind("StatefulSet")["spec"]["template"]["spec"]["containers"]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert config.trusted_keys is not None
        # The folder of a volume of keys has the mode 0777, and the line refuses keys there.
        for path in (config.line.state, config.trusted_keys, config.stations[0].views[0].bundle.parent):
            assert str(path) in mounts
        (keys,) = (mount for mount in container["volumeMounts"] if mount["name"] == "keys")
        assert keys["subPath"] == config.trusted_keys.name
        assert config.http is not None
        assert config.http.listen in str(container["livenessProbe"]["exec"]["command"])


def _kind(kind: str) -> dict[str, Any]:
    (found,) = (one for _, one in MANIFESTS if one["kind"] == kind)
    return found


def _of(file: str, kind: str) -> dict[str, Any]:
    (found,) = (one for name, one in MANIFESTS if name == file and one["kind"] == kind)
    return found


@pytest.mark.long
def test_a_line_of_the_fleet_passes_its_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from flawscope import cli

    text = (FLEET / "press.yml").read_text().replace("/state", "state").replace("/bundles/", "").replace("8710", "0")
    # Neither the key nor the registry are here.
    config = yaml.safe_load(text)
    del config["trusted_keys"], config["stations"][0]["views"][0]["rollout"]
    (tmp_path / "line.yml").write_text(yaml.safe_dump(config))
    write_tiny_bundle(tmp_path / "part.flaw", thresholds=tiny_thresholds())
    assert cli.run(["line", "check", str(tmp_path / "line.yml")]) == 0, capsys.readouterr().out


def test_yamllint_finds_nothing(tmp_path: Path) -> None:
    yamllint = program("yamllint")
    rules = "{line-length: {max: 200}, document-start: disable, comments-indentation: disable}"
    check(yamllint, "--strict", "-d", f"{{extends: default, rules: {rules}}}", DEPLOY)


def test_hadolint_finds_nothing() -> None:
    hadolint = program("hadolint")
    # DL3008: versions of Debian's packages; the release of Debian is pinned, and its updates are wanted.
    check(hadolint, "--ignore", "DL3008", DEPLOY / "Dockerfile")


def test_files_are_those_of_the_project_alone() -> None:
    for folder, _, names in os.walk(DEPLOY):
        for name in names:
            text = (Path(folder) / name).read_text(encoding="utf-8")
            assert not re.search(r"-----BEGIN [A-Z ]*PRIVATE KEY|password: [^$\s{]", text), name
