"""The manifests: valid, safe, consistent with each other; those that are committed are those that the code makes."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import typer
import yaml

import hzzray
from bridge.topology import Topology
from kuberay import broker, chart, deployment, kustomize
from kuberay import ray as ray_parts
from kuberay.common import Object
from kuberay.values import Values, load, overlays, quantity
from tests.support.overlays import build

ROOT = Path(__file__).parents[1]
WRITTEN = ROOT / "kuberay" / "manifests"

# What users may choose besides the overlays: each as a file of their own would say it.
VARIANTS = {
    "base": (None, {}),
    "minikube": ("minikube", {}),
    "production": ("production", {}),
    "another name": (None, {"name": "higgs", "namespace": "physics", "image": {"secrets": ["login"]}}),
    "TLS everywhere": ("minikube", {"broker": {"tls_secret": "broker-tls"}, "ray": {"tls": True}}),
    "state in Redis": ("minikube", {"ray": {"fault_tolerance": True, "auth_secret": "token"}}),
    "data in a volume": (None, {"data": {"release": "2020", "claim": "files"}, "storage": {"class_name": "fast"}}),
    "data of the web": (None, {"data": {"release": 2025, "source": "https://example.org/data"}}),
    "nothing to publish": (None, {"loader": {"run_id": ""}, "network": {"policies": False}}),
}


def values_of(variant: str, folder: Path) -> Values:
    overlay, own = VARIANTS[variant]
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(own))
    return load(overlay, path)


@pytest.fixture(params=VARIANTS)
def values(request, tmp_path) -> Values:
    return values_of(request.param, tmp_path)


def all_objects(values: Values) -> list[Object]:
    return [*deployment.deployment(values), *deployment.jobs(values).values()]


def ray_specs(values: Values) -> Iterator[Object]:
    for made in all_objects(values):
        if made["kind"] == "RayCluster":
            yield made["spec"]
        elif "rayClusterSpec" in made["spec" if made["kind"] == "RayJob" else "metadata"]:
            yield made["spec"]["rayClusterSpec"]


def pods(values: Values) -> Iterator[tuple[str, Object]]:
    """All pod templates of ours, by a name for messages; the broker's by its operator only in part."""
    for made in all_objects(values):
        name, spec = f"{made['kind']} {made['metadata']['name']}", made.get("spec", {})
        if made["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield name, spec["template"]
        if made["kind"] == "RabbitmqCluster":
            yield name, spec["override"]["statefulSet"]["spec"]["template"]
        if made["kind"] == "RayJob":
            yield f"{name} submitter", spec["submitterPodTemplate"]
            spec = spec.get("rayClusterSpec", {})
        if "headGroupSpec" in spec:
            yield f"{name} head", spec["headGroupSpec"]["template"]
            for group in spec["workerGroupSpecs"]:
                yield f"{name} {group['groupName']}", group["template"]


def containers(values: Values) -> Iterator[tuple[str, Object]]:
    for name, pod in pods(values):
        for each in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            yield f"{name}: {each['name']}", each


# ---------------------------------------------------------------------------------------------------- the folder


def test_the_committed_manifests_are_what_the_code_writes():
    written = {str(path.relative_to(WRITTEN)): path.read_text() for path in WRITTEN.rglob("*") if path.is_file()}
    made = kustomize.files()
    assert written.keys() == made.keys(), "run: hzzray kube manifests"
    assert written == made, "run: hzzray kube manifests"


def by_key(found: list[Object]) -> dict[tuple[str, str], Object]:
    named = {deployment.key(made): made for made in found}
    assert len(named) == len(found)
    return named


@pytest.mark.parametrize("overlay", overlays())
def test_an_overlay_says_what_its_values_say(overlay):
    built = by_key(build(WRITTEN / "overlays" / overlay))
    assert built == by_key(deployment.deployment(load(overlay)))


@pytest.mark.parametrize("folder", ["base", *(f"overlays/{name}" for name in overlays())])
def test_kustomize_takes_them(folder):
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here")
    done = subprocess.run(
        ["kubectl", "kustomize", WRITTEN / folder], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    overlay = None if folder == "base" else folder.split("/")[1]
    assert by_key(list(yaml.safe_load_all(done.stdout))) == by_key(deployment.deployment(load(overlay)))


def test_writing_leaves_nothing_of_before(tmp_path, cli):
    stale = tmp_path / "base" / "old.yaml"
    stale.parent.mkdir()
    stale.write_text("")
    code, said, _ = cli("kube", "manifests", tmp_path)
    assert code == 0
    assert not stale.exists()
    assert str(len(kustomize.files())) in said


# --------------------------------------------------------------------------------------------------- the schemas

OF_OPERATORS = {"RayCluster", "RayJob", "RabbitmqCluster", "PodMonitor"}


def test_kubernetes_own_kinds_are_valid(values):
    for made in all_objects(values):
        if made["kind"] not in OF_OPERATORS:
            kubernetes_validate.validate(made, "1.29", strict=True)


@pytest.mark.parametrize("overlay", [None, *overlays()])
def test_they_are_valid_for_a_later_kubernetes(overlay):
    for made in deployment.deployment(load(overlay)):
        if made["kind"] not in OF_OPERATORS:
            kubernetes_validate.validate(made, "1.37", strict=True)


def strict(schema: Any) -> Any:
    """Make of a custom resource's schema one that refuses what it doesn't know, as the API server does."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    kept = {
        key: {name: strict(each) for name, each in value.items()} if key == "properties" else strict(value)
        for key, value in schema.items()
        if not key.startswith("x-") and key not in ("format", "description", "default")
    }
    if "properties" in kept and not schema.get("x-kubernetes-preserve-unknown-fields"):
        kept.setdefault("additionalProperties", False)
    return kept


@pytest.fixture(scope="session")
def crds(shared) -> dict[tuple[str, str], Any]:
    folder = shared.parent / "crds"
    if not folder.is_dir():
        pytest.skip("no ../shared/crds beside the checkout")
    found = {}
    for path in folder.glob("*.yaml"):
        spec = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            key = (spec["names"]["kind"], f"{spec['group']}/{version['name']}")
            found[key] = jsonschema.Draft7Validator(schema)
    return found


def test_operators_kinds_are_valid(values, crds):
    checked = set()
    for made in all_objects(values):
        if validator := crds.get((made["kind"], made["apiVersion"])):
            assert [f"{list(error.absolute_path)}: {error.message}" for error in validator.iter_errors(made)] == []
            checked.add(made["kind"])
    assert checked >= {"RayCluster", "RayJob"}


def test_the_strict_schema_refuses(crds, tmp_path):
    made = by_key(deployment.deployment(load()))["RayCluster", "hzzray"]
    made["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image_pull_policy"] = "Always"
    (error,) = crds["RayCluster", "ray.io/v1"].iter_errors(made)
    assert "image_pull_policy" in error.message


def test_the_operators_own_rules_hold(shared):
    script = shared.parent / "lab" / "validate_manifests.py"
    if not script.exists():
        pytest.skip("no validator beside the checkout")
    files = [*(WRITTEN / "jobs").rglob("*.yaml"), WRITTEN / "base" / "raycluster-hzzray.yaml"]
    done = subprocess.run(
        [sys.executable, script, shared.parent / "crds", *files],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("OK") == len(files)


# ------------------------------------------------------------------------------------------------------- safety

VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}


def assert_restricted(name: str, context: Object) -> None:
    """The Pod Security Standard "restricted", of a container."""
    assert context["allowPrivilegeEscalation"] is False, name
    assert context["capabilities"] == {"drop": ["ALL"]}, name
    assert context["runAsNonRoot"] is True, name
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
    assert context.get("privileged", False) is False, name
    assert context["readOnlyRootFilesystem"] is True, name


def test_all_pods_keep_to_the_restricted_standard(values):
    for name, pod in pods(values):
        spec = pod["spec"]
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "hostUsers"}, name
        if not name.startswith("RabbitmqCluster"):  # its operator's: see its own container
            assert spec["securityContext"]["runAsNonRoot"] is True, name
            assert spec["securityContext"]["runAsUser"] > 0, name
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for volume in spec.get("volumes", []):
            (kind,) = volume.keys() - {"name"}
            assert kind in VOLUMES, name
    for name, each in containers(values):
        if name != f"RabbitmqCluster {values.broker_name}: rabbitmq":
            assert_restricted(name, each["securityContext"])
        for port in each.get("ports", []):
            assert "hostPort" not in port, name
    for spec in ray_specs(values):
        assert_restricted("autoscaler", spec["autoscalerOptions"]["securityContext"])
    assert deployment.namespace(values)["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_only_the_head_may_ask_the_kubernetes_api(values):
    for name, pod in pods(values):
        if not name.startswith("RabbitmqCluster"):
            assert pod["spec"]["automountServiceAccountToken"] is (name.split()[-1] == "head"), name


def test_no_secret_is_in_them(values):
    assert all(made["kind"] != "Secret" for made in all_objects(values))
    for name, each in containers(values):
        for variable in each.get("env", []):
            secret = re.search("PASSWORD|TOKEN|SECRET", variable["name"])
            if secret and not variable["name"].endswith("_FILE"):
                assert "secretKeyRef" in variable["valueFrom"], name
        assert not re.search("passw|token", " ".join(each.get("command", []))), name
    text = kustomize.dump(all_objects(values))
    assert not re.search(r"://[^/\s]*:[^/\s@]+@", text)


def test_every_container_has_requests_and_limits(values):
    for name, each in containers(values):
        if name == f"RabbitmqCluster {values.broker_name}: rabbitmq":
            continue
        for which in ("requests", "limits"):
            assert each["resources"][which].keys() == {"cpu", "memory"}, name
    for spec in ray_specs(values):
        assert spec["autoscalerOptions"]["resources"]["limits"]


def test_one_image_does_it_all(values):
    others = {values.broker.image, values.redis.image}
    images = {each["image"] for name, each in containers(values) if "image" in each} - others
    assert images == {values.image.reference}
    assert values.image.tag == hzzray.__version__
    for name, pod in pods(values):
        if values.image.secrets and not name.startswith("RabbitmqCluster"):
            assert pod["spec"]["imagePullSecrets"] == [{"name": each} for each in values.image.secrets], name


def test_volumes_are_there_and_used(values):
    for name, pod in pods(values):
        have = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        have |= {"data"} if name.startswith("StatefulSet") else set()  # its claim
        used = {
            mount["name"]
            for each in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
            for mount in each["volumeMounts"]
        }
        assert have == used, name


# ----------------------------------------------------------------------------------------------------------- Ray


def test_the_ray_version_is_the_locked_one(values):
    (locked,) = re.findall(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    for spec in ray_specs(values):
        assert spec["rayVersion"] == locked == ray.__version__


def test_ray_clusters_are_as_kuberay_wants_them(values):
    specs = list(ray_specs(values))
    assert len(specs) == 2
    for spec in specs:
        # {} would be no authentication at all.
        assert spec["authOptions"]["mode"] == "token"
        assert spec["enableInTreeAutoscaling"] is True
        assert spec["autoscalerOptions"]["version"] == "v2"
        assert spec["autoscalerOptions"]["idleTimeoutSeconds"] == values.ray.idle_timeout_s
        head = spec["headGroupSpec"]
        (workers,) = spec["workerGroupSpecs"]
        assert head["rayStartParams"]["num-cpus"] == "0"
        assert workers["rayStartParams"]["num-cpus"] == str(values.workers.actors)
        assert workers["minReplicas"] == values.workers.min <= workers["replicas"] <= workers["maxReplicas"]
        assert head["template"]["spec"]["containers"][0]["name"] == "ray-head"
        for group in (head, workers):
            assert "resources" not in group  # refused beside num-cpus
            assert "labels" not in group["rayStartParams"]
            assert "restartPolicy" not in group["template"]["spec"]  # KubeRay's, with the autoscaler's version 2
            # KubeRay's service finds the head by these two, which it sets only where we don't.
            labels = group["template"]["metadata"]["labels"]
            assert not labels.keys() & {"app.kubernetes.io/name", "app.kubernetes.io/created-by"}
            store = float(group["rayStartParams"]["object-store-memory"])
            (shm,) = [each for each in group["template"]["spec"]["volumes"] if each["name"] == "shared-mem"]
            assert quantity(shm["emptyDir"]["sizeLimit"]) > store
            ray_env = {each["name"] for each in group["template"]["spec"]["containers"][0]["env"]}
            assert not ray_env & {"RAY_USE_TLS", "RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "RAY_enable_autoscaler_v2"}


def test_names_leave_room_for_what_kuberay_appends(values):
    for made in all_objects(values):
        longest = {"RayCluster": 53, "RayJob": 47}.get(made["kind"], 63)
        assert len(made["metadata"]["name"]) <= longest


def test_the_bridge_is_a_driver_on_the_head(values):
    specs = list(ray_specs(values))
    heads = [spec["headGroupSpec"]["template"]["spec"] for spec in specs]
    beside = [[each for each in head["initContainers"] if each["name"] == "bridge"] for head in heads]
    assert [len(each) for each in beside] == [1, 0]  # none in a cluster that is there for one run
    (bridge,) = beside[0]
    assert bridge["restartPolicy"] == "Always"
    assert bridge["name"] == heads[0]["initContainers"][-1]["name"]
    # It finds the node's processes and sockets, and the ledgers are where the reducer sees them.
    assert heads[0]["shareProcessNamespace"] is True
    (ray_head,) = heads[0]["containers"]
    places = [{m["mountPath"]: m["name"] for m in each["volumeMounts"]} for each in (bridge, ray_head)]
    for path in ("/tmp/ray", "/dev/shm", "/runs"):
        assert places[0][path] == places[1][path]


def test_jobs_are_as_kuberay_wants_them(values):
    batch, standing = (deployment.jobs(values)[name]["spec"] for name in ("batch", "standing"))
    assert batch["shutdownAfterJobFinishes"] is True
    assert batch["ttlSecondsAfterFinished"] == values.job.keep_s
    assert standing["clusterSelector"] == {"ray.io/cluster": values.name}
    assert not standing.keys() & {"backoffLimit", "ttlSecondsAfterFinished", "rayClusterSpec"}
    for spec in (batch, standing):
        assert spec["submissionMode"] == "K8sJobMode"
        assert spec["activeDeadlineSeconds"] == values.job.deadline_s
        (submitter,) = spec["submitterPodTemplate"]["spec"]["containers"]
        assert submitter["name"] == "ray-job-submitter"
        assert spec["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never"


def test_pods_that_mount_the_runs_are_where_they_can(values):
    mounting = 0
    for name, pod in pods(values):
        claims = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["spec"].get("volumes", [])]
        if f"{values.name}-runs" not in claims:
            assert "affinity" not in pod["spec"], name
            continue
        mounting += 1
        (rule,) = pod["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        # The rule holds for the pod itself, so that the first of them is placed at all.
        assert rule["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items(), name
    assert mounting == 3  # two heads, the app


# ------------------------------------------------------------------------------------------ what belongs together


def operators_labels(values: Values, name: str, labels: dict[str, str]) -> dict[str, str]:
    """The labels that a pod has in the end: operators add theirs."""
    kind, owner, *role = name.split()
    if kind == "RabbitmqCluster":
        return {"app.kubernetes.io/name": owner, "app.kubernetes.io/component": "rabbitmq"}
    if role in (["head"], ["workers"]):
        cluster = owner if kind == "RayCluster" else f"{owner}-x2b4d"
        return labels | {"ray.io/cluster": cluster, "ray.io/node-type": {"workers": "worker"}.get(role[0], role[0])}
    return labels


def live_pods(values: Values) -> dict[str, dict[str, str]]:
    return {
        name: operators_labels(values, name, pod.get("metadata", {}).get("labels", {})) for name, pod in pods(values)
    }


def matches(selector: Object, labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def test_selectors_select(values):
    live = live_pods(values)
    for made in all_objects(values):
        spec = made.get("spec", {})
        selectors = {
            "Service": lambda spec: {"matchLabels": spec["selector"]},
            "PodDisruptionBudget": lambda spec: spec["selector"],
            "NetworkPolicy": lambda spec: spec["podSelector"],
            "PodMonitor": lambda spec: spec["selector"],
            "Deployment": lambda spec: spec["selector"],
            "StatefulSet": lambda spec: spec["selector"],
        }
        if made["kind"] not in selectors or (made["metadata"]["name"].endswith("loader") and not values.loader.run_id):
            continue
        found = [name for name, labels in live.items() if matches(selectors[made["kind"]](spec), labels)]
        assert found, f"{made['kind']} {made['metadata']['name']}"
        if made["kind"] in ("Service", "PodDisruptionBudget", "Deployment", "StatefulSet"):
            assert len(found) == 1, found


def test_services_lead_to_ports_that_are_there(values):
    ports = {
        name: {port["name"] for each in pod["spec"]["containers"] for port in each.get("ports", [])}
        for name, pod in pods(values)
    }
    for made in deployment.deployment(values):
        if made["kind"] == "Service":
            (owner,) = [
                name for name, labels in live_pods(values).items() if made["spec"]["selector"].items() <= labels.items()
            ]
            assert {port["targetPort"] for port in made["spec"]["ports"]} <= ports[owner]


Pod = tuple[str, dict[str, str]]  # its namespace's name, and its labels


def allowed(policies: list[Object], source: Pod, target: Pod, port: int) -> bool:
    """Judge by all policies whether a pod may connect to another's port."""

    def one_way(mine: Pod, other: Pod, direction: str) -> bool:
        side = {"Ingress": ("ingress", "from"), "Egress": ("egress", "to")}[direction]
        isolating = [
            each["spec"]
            for each in policies
            if each["metadata"]["namespace"] == mine[0] and matches(each["spec"]["podSelector"], mine[1])
        ]
        if not isolating:
            return True
        for rule in itertools.chain.from_iterable(spec[side[0]] for spec in isolating):
            ports = rule.get("ports")
            if ports and not any(each["port"] <= port <= each.get("endPort", each["port"]) for each in ports):
                continue
            for each in rule[side[1]]:
                if "ipBlock" in each:  # of the world outside
                    continue
                space = each.get("namespaceSelector")
                near = matches(space, {"kubernetes.io/metadata.name": other[0]}) if space is not None else (
                    mine[0] == other[0])  # fmt: skip
                if near and matches(each.get("podSelector", {}), other[1]):
                    return True
        return False

    return one_way(source, target, "Egress") and one_way(target, source, "Ingress")


KUBERAY = {"app.kubernetes.io/name": "kuberay", "app.kubernetes.io/component": "kuberay-operator"}


def everybody(values: Values) -> dict[str, Pod]:
    """Who may want something of whom: the deployment's pods, and those of others that have to do with it."""
    found: dict[str, Pod] = {}
    for labels in live_pods(values).values():
        component = labels.get("app.kubernetes.io/component", "")
        found[{"rabbitmq": "broker"}.get(component, component)] = (values.namespace, labels)
    return found | {
        "KubeRay's operator": ("default", KUBERAY),
        "Prometheus": (values.metrics.namespace, {"app": "prometheus"}),
        "ingress controller": (values.ingress.controller_namespace, {"app": "nginx"}),
        "stranger of the namespace": (values.namespace, {"app.kubernetes.io/name": "somebody"}),
        "stranger": ("elsewhere", {"app.kubernetes.io/name": "somebody"}),
    }


def written_ways(values: Values) -> dict[tuple[str, str], set[int]]:
    """Read the table of docs/kuberay.md: who must reach whom, on which ports; empty for all."""
    _, _, table = (ROOT / "docs" / "kuberay.md").read_text().partition("| who | reaches | on |\n| --- | --- | --- |\n")
    rows = [row.strip("|").split("|") for row in table.partition("\n\n")[0].splitlines()]
    tls = "with" if values.broker.tls_secret else "without"
    ways: dict[tuple[str, str], set[int]] = {}
    for who, whom, where in rows:
        if " TLS" in where and not where.strip().endswith(f" {tls} TLS"):
            continue
        found = re.findall(r"(\d+)(?:–(\d+))?", where)
        ports = {port for low, high in found for port in (int(low), int(high or low))}
        for a, b in itertools.product(who.split(","), whom.split(",")):
            ways.setdefault((re.sub(r" \(.*\)", "", a.strip()), b.strip()), set()).update(ports)
    return ways


@pytest.mark.parametrize("variant", ["base", "production", "state in Redis", "TLS everywhere", "another name"])
def test_who_must_reach_whom_may_and_nobody_else(variant, tmp_path):
    """Issue 11, items 29 and 34: KubeRay's operator was kept from the dashboard, and each RayJob ended as FAILED."""
    values = values_of(variant, tmp_path)
    policies = [made for made in deployment.deployment(values) if made["kind"] == "NetworkPolicy"]
    ways, who = written_ways(values), everybody(values)
    assert ways["KubeRay's operator", "head"] == {ray_parts.DASHBOARD}
    ports = {9999}.union(*ways.values())
    ours = who.keys() & {"head", "worker", "app", "submitter", "loader", "broker", "redis"}
    assert ours >= {"head", "worker", "app", "submitter", "broker"}
    wanted = {
        (a, port, b)
        for (a, b), where in ways.items()
        if a in who and b in who
        for port in where or ports
        if not (a == "ingress controller" and not values.ingress.host)
    }
    # In the range of the ports by which the broker's nodes replicate their streams.
    wanted |= {("broker", port, "broker") for port in ports if 6000 <= port <= 6500}
    seen = {
        (a, port, b) for a in who for b in ours for port in ports if allowed(policies, who[a], who[b], port)
    }  # fmt: skip
    assert seen == wanted
    if values.ray.fault_tolerance:  # KubeRay cleans Redis up with a pod like the head's
        space, labels = who["head"]
        assert allowed(policies, (space, labels | {"ray.io/node-type": "redis-cleanup"}), who["redis"], 6379)


@pytest.mark.parametrize(
    ("operator", "space", "labels", "may"),
    [
        ({}, "default", KUBERAY, True),
        ({}, "kuberay-system", KUBERAY | {"app.kubernetes.io/name": "kuberay-operator"}, True),  # Helm's
        ({"namespace": "kuberay-system"}, "kuberay-system", KUBERAY, True),
        ({"namespace": "kuberay-system"}, "default", KUBERAY, False),
        ({"selector": "app=my,tier=ray"}, "default", {"app": "my", "tier": "ray"}, True),
        ({"selector": "app=my,tier=ray"}, "default", {"app": "my"}, False),
        ({"selector": "app=my"}, "default", KUBERAY, False),
    ],
)
def test_where_kuberays_operator_is_may_be_chosen(tmp_path, operator, space, labels, may):
    """Issue 11, item 29: namespace and labels are values."""
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"network": {"kuberay": operator}}))
    values = load(None, path)
    policies = [made for made in deployment.deployment(values) if made["kind"] == "NetworkPolicy"]
    head = everybody(values)["head"]
    assert allowed(policies, (space, labels), head, 8265) is may
    assert not allowed(policies, (space, labels), head, 10001)


def test_each_container_leaves_its_last_words(values):
    """Issue 11, item 28."""
    for name, each in containers(values):
        assert each["terminationMessagePolicy"] == "FallbackToLogsOnError", name


def test_a_headless_service_has_a_name_before_its_pod_is_ready(values):
    """Issue 11, item 28: clients asked for the broker's name too early, and were told for long that there is none."""
    headless = [made["spec"] for made in deployment.deployment(values) if made["kind"] == "Service"]
    headless = [spec for spec in headless if spec.get("clusterIP") == "None"]
    assert len(headless) == (values.broker.kind == "statefulset") + values.ray.fault_tolerance
    assert all(spec["publishNotReadyAddresses"] is True for spec in headless)


def test_what_runs_unattended_waits_for_the_broker(values):
    """Issue 11, item 28: ten minutes, as its image may have to come first; the app's users don't wait so long."""
    waits = {
        name.split(": ")[1]: {each["name"]: each.get("value") for each in one["env"]}.get("HZZRAY_BROKER_WAIT")
        for name, one in containers(values)
        if any(each["name"] == "HZZRAY_BROKER" for each in one.get("env", []))
    }
    assert waits == {"bridge": "600", "app": None} | ({"loader": "600"} if values.loader.run_id else {})


def test_no_budget_keeps_a_machine_from_being_drained(values):
    """Issue 11, item 32: one of one must be available, so the head's machine, and Redis', could never be drained."""
    replicas = {made["metadata"]["name"]: made["spec"].get("replicas", 1)
                for made in deployment.deployment(values) if made["kind"] == "RabbitmqCluster"}  # fmt: skip
    budgets = [made for made in deployment.deployment(values) if made["kind"] == "PodDisruptionBudget"]
    assert {made["metadata"]["name"] for made in budgets} == {name for name, number in replicas.items() if number > 1}
    for made in budgets:
        assert made["spec"]["minAvailable"] < replicas[made["metadata"]["name"]]
        assert made["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_it_fits_on_a_small_machine():
    """minikube with 4 CPUs and 6 GB, of which Kubernetes itself and KubeRay take about one of each."""
    values = load("minikube")
    cpu = memory = 0.0
    for name, pod in pods(values):
        if not name.startswith(("RayCluster", "StatefulSet", "Deployment", "Job")):
            continue
        count = values.workers.max if name.endswith("workers") else 1
        running = [*pod["spec"]["containers"]]
        running += [each for each in pod["spec"].get("initContainers", []) if each.get("restartPolicy") == "Always"]
        requests = [each["resources"]["requests"] for each in running]
        if name.endswith("head"):
            requests.append(values.ray.autoscaler.requests.model_dump())
        cpu += count * sum(quantity(each["cpu"]) for each in requests)
        memory += count * sum(quantity(each["memory"]) for each in requests)
    assert cpu <= 3
    assert memory <= 5 * 2**30


# ------------------------------------------------------------------------------------------ what containers run


def test_commands_are_ours(values):
    """Each ``hzzray …`` of a container is a command of this version, with options that it has."""
    from hzzray.cli import app

    root = typer.main.get_command(app)
    lines = [(name, each["command"]) for name, each in containers(values) if each.get("command", [""])[0] == "hzzray"]
    lines += [
        (name, ["hzzray", "bridge", *each["command"][4:]])
        for name, each in containers(values)
        if name.endswith("bridge")
    ]
    lines += [(name, job["spec"]["entrypoint"].split()) for name, job in deployment.jobs(values).items()]
    assert len(lines) >= 4
    for name, (_, *words) in lines:
        command, context = root, typer.Context(root, info_name="hzzray")
        while hasattr(command, "commands"):
            command = command.commands.get(words[0])
            assert command is not None, f"{name}: no command {words[0]}"
            context = typer.Context(command, parent=context, info_name=words.pop(0))
        command.make_context(context.info_name, words, parent=context.parent).close()


def test_the_brokers_users_are_its_own():
    assert tuple(user.name for user in Topology().users) == broker.USERS


def test_another_run_is_another_job(tmp_path):
    names = set()
    for number in range(2):
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump({"loader": {"run_id": f"run-{number}"}}))
        names |= {made["metadata"]["name"] for made in deployment.deployment(load(None, path)) if made["kind"] == "Job"}
    assert len(names) == 2


# What a chart's user may set, each another than in values.yaml.
SET = {
    "image": {"name": "registry.example/higgs", "tag": "9"},
    "redis": {"image": "redis:8", "storage": "3Gi"},
    "broker": {"image": "rabbitmq:4.3-management", "storage": "9Gi"},
    "storage": {"size": "7Gi"},
}
SIZES = {"requests": {"cpu": "2", "memory": "5Gi"}, "limits": {"cpu": "3500m", "memory": "6Gi"}}
SET |= {part: SET.get(part, {}) | SIZES for part in ("bridge", "broker", "app")}
HEAD = {"requests": {"cpu": 3, "memory": "5Gi"}, "limits": {"cpu": "4", "memory": "9Gi"}}
SET["ray"] = {"head": HEAD, "autoscaler": SIZES}


def rendered(files: dict[str, str], given: dict[str, Any]) -> dict[tuple[str, str], Object]:
    """Render a chart as Helm does, as far as its templates go: references to values, quoted or not, and no more."""

    def value(path: str) -> str:
        found: Any = given
        for part in path.split("."):
            found = found[part]
        return str(found)

    made = {}
    for path, text in files.items():
        if not path.startswith("templates/"):
            continue
        shown = re.sub(r"\{\{ \.Values\.([\w.]+) \| quote \}\}", lambda one: f'"{value(one[1])}"', text)
        shown = re.sub(r"\{\{ \.Values\.([\w.]+) \}\}", lambda one: value(one[1]), shown)
        shown = shown.replace('{{ "{{" }}', "\0")
        assert "{{" not in shown
        assert not re.search(r"zz\d+zz", shown), path
        one = yaml.safe_load(shown.replace("\0", "{{"))
        made[deployment.key(one)] = one
    return made


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return {
        name: merged(value, new[name]) if isinstance(value, dict) and name in new else new.get(name, value)
        for name, value in old.items()
    }


@pytest.mark.parametrize("own", [{}, SET], ids=["as it is", "all set"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_helm_chart_renders_to_the_manifests_own_objects(variant, own, tmp_path):
    """helm itself isn't at hand here: templates have nothing in them but references to values, rendered as it would."""
    overlay, chosen = VARIANTS[variant]
    files = chart.chart(values_of(variant, tmp_path))
    given = merged(yaml.safe_load(files["values.yaml"]), own)
    both = chosen | {name: {**chosen.get(name, {}), **value} for name, value in own.items()}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(both))
    wanted = {deployment.key(one): one for one in deployment.deployment(load(overlay, tmp_path / "all.yaml"))}
    wanted = {key: one for key, one in wanted.items() if key[0] != "Namespace"}
    found = rendered(files, given)

    def nameless(made: dict[tuple[str, str], Object]) -> list[Object]:
        """Leave out the digest at the end of a Job's name, which is of the values that the chart was made with."""
        return [
            {**one, "metadata": {**one["metadata"], "name": re.sub(r"-[0-9a-f]{8}$", "", one["metadata"]["name"])}}
            if one["kind"] == "Job" else one
            for one in sorted(made.values(), key=lambda one: (one["kind"], one["metadata"]["name"]))
        ]  # fmt: skip

    assert nameless(found) == nameless(wanted)


def test_a_chart_is_one_that_helm_takes(cli, tmp_path):
    code, _, err = cli("kube", "chart", tmp_path / "chart", "--overlay", "minikube")
    assert code == 0, err
    about = yaml.safe_load((tmp_path / "chart" / "Chart.yaml").read_text())
    assert about["apiVersion"] == "v2"
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["version"])
    assert about["version"] == hzzray.__version__
    assert (tmp_path / "chart" / "templates" / "raycluster-hzzray.yaml").is_file()
    assert set(chart.CHANGEABLE) == {
        ".".join(path) for path in leaves(yaml.safe_load((tmp_path / "chart" / "values.yaml").read_text()))
    }
    if shutil.which("helm"):
        subprocess.run(["helm", "lint", "--strict", tmp_path / "chart"], check=True)
        subprocess.run(["helm", "template", "x", tmp_path / "chart"], check=True, capture_output=True)


def leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in tree.items():
        yield from leaves(value, (*path, name)) if isinstance(value, dict) else [(*path, name)]
