"""``hzzray kube``: a deployment on Kubernetes. Heavy imports wait until a command needs them."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from hzzray.errors import UsageError
from hzzray.options import AsJson, print_json

if TYPE_CHECKING:
    from kuberay.kubectl import Kubectl
    from kuberay.values import Values

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="A deployment on Kubernetes: broker, Ray cluster, bridge, app.",
)
console = Console(emoji=False)

Overlay = Annotated[
    str | None, typer.Option(envvar="HZZRAY_KUBE_OVERLAY", help="minikube, production. Default: neither.")
]
Own = Annotated[
    Path | None,
    typer.Option("--values", envvar="HZZRAY_KUBE_VALUES", help="YAML file with what differs from values.yaml."),
]
Context = Annotated[str | None, typer.Option(help="kubectl's context. Default: its current one.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done; no cluster is asked.")]
Timeout = Annotated[float, typer.Option("--timeout", min=1, help="Seconds.")]


def _say(line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True, markup=False)


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Let a command that has a kubectl running end it when it is told to end, or its terminal goes."""
    asked = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in asked]
    try:
        yield
    finally:
        for number, handler in zip(asked, before, strict=True):
            signal.signal(number, handler)


def _open(overlay: str | None, own: Path | None, context: str | None, *, dry: bool = False) -> tuple[Kubectl, Values]:
    from kuberay.kubectl import Kubectl  # noqa: PLC0415
    from kuberay.values import load  # noqa: PLC0415

    values = load(overlay, own)
    return Kubectl(values.namespace, context, dry=dry, say=_say), values


@app.command()
def up(
    overlay: Overlay = None,
    own: Own = None,
    context: Context = None,
    timeout: Timeout = 900,
    wait: Annotated[bool, typer.Option(help="Wait until all is ready.")] = True,
    dry_run: DryRun = False,
) -> None:
    """Apply everything, make passwords, and wait until each pod is ready, or say why one isn't (exit code 1)."""
    from kuberay import deploy  # noqa: PLC0415
    from kuberay.kubectl import KubeError  # noqa: PLC0415

    kubectl, values = _open(overlay, own, context, dry=dry_run)
    deploy.up(kubectl, values, _say)
    if dry_run or not wait:
        return
    if missing := deploy.wait(kubectl, values, timeout, _say):
        said = "; ".join(f"{part.kind} {part.name}: {part.says}" for part in missing)
        raise KubeError(f"not ready after {timeout:g} s: {said}")
    _say(f"all ready: hzzray kube forward{f' --overlay {overlay}' if overlay else ''}")


@app.command()
def status(
    overlay: Overlay = None,
    own: Own = None,
    context: Context = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Show each part of a deployment, and why one isn't ready (exit code 1)."""
    from kuberay import deploy  # noqa: PLC0415

    kubectl, values = _open(overlay, own, context, dry=dry_run)
    if dry_run:
        for question in deploy.questions(values):
            kubectl.show(*question)
        return
    parts = deploy.look(kubectl, values)
    ready = all(part.ready for part in parts)
    if as_json:
        print_json({"ready": ready, "parts": [asdict(part) for part in parts]})
        raise typer.Exit(0 if ready else 1)
    kinds, names = (
        max(len(text) for text in column) for column in zip(*((p.kind, p.name) for p in parts), strict=True)
    )
    for part in parts:  # no table: it would cut what doesn't fit, and names are there to be copied
        line = f"{'✓' if part.ready else '✗'} {part.kind:{kinds}}  {part.name:{names}}  {part.says}"
        style = None if part.ready else "red"
        console.print(line.rstrip(), style=style, highlight=False, soft_wrap=True, markup=False)
    if not ready:
        raise typer.Exit(1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit(
    ctx: typer.Context,
    overlay: Overlay = None,
    own: Own = None,
    context: Context = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray's dashboard (http://…), with its token in RAY_AUTH_TOKEN. Default: found by kubectl."),
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show the run's log until it ends, and exit as it does.")] = True,
    dry_run: DryRun = False,
) -> None:
    """Start a run as a job of the Ray cluster. What follows -- goes to `hzzray run` there."""
    from kuberay import submit as jobs  # noqa: PLC0415

    kubectl, values = _open(overlay, own, context, dry=dry_run)
    command, run_id = jobs.entrypoint(values, ctx.args)
    if dry_run:
        _say(f"ray job submit --address {address or 'http://127.0.0.1:8265'} --submission-id {run_id} -- {command}")
        return
    with _ended_like_ctrl_c(), jobs.connected(kubectl, values, address) as client:
        submission = jobs.start(client, command, run_id)
        _say(f"job {submission}: {command}")
        if not follow:
            _say(f"it goes on; `ray job logs {submission}` shows its log, `ray job stop {submission}` drains it")
            return
        try:
            code = jobs.follow(client, submission, lambda text: typer.echo(text, nl=False))
        except KeyboardInterrupt:
            _say(f"job {submission} goes on; `ray job stop {submission}` drains it")
            raise typer.Exit(130) from None
    raise typer.Exit(code)


@app.command()
def forward(
    overlay: Overlay = None,
    own: Own = None,
    context: Context = None,
    app_port: Annotated[int, typer.Option(min=1, max=65535, help="The app, here.")] = 8501,
    dashboard_port: Annotated[int, typer.Option(min=1, max=65535, help="Ray's dashboard, here.")] = 8265,
    management_port: Annotated[int, typer.Option(min=1, max=65535, help="The broker's management, here.")] = 15672,
    broker_port: Annotated[int, typer.Option(min=1, max=65535, help="The broker, here.")] = 5672,
    dry_run: DryRun = False,
) -> None:
    """Have app, dashboard and broker on this machine's 127.0.0.1 until Ctrl-C."""
    from kuberay import forward as ports  # noqa: PLC0415
    from kuberay.kubectl import port_forward  # noqa: PLC0415

    kubectl, values = _open(overlay, own, context, dry=dry_run)
    chosen = ports.routes(values, app=app_port, dashboard=dashboard_port, management=management_port, amqp=broker_port)
    if dry_run:
        for route in chosen:
            kubectl.show(*port_forward(route.service, route.port, route.local))
        return
    try:
        with _ended_like_ctrl_c(), ports.Forwards(kubectl, chosen, _say) as forwards:
            for line in ports.welcome(values, chosen):
                _say(line)
            while True:
                forwards.mend()
                time.sleep(1)
    except KeyboardInterrupt:
        _say("ended")


@app.command()
def down(
    overlay: Overlay = None,
    own: Own = None,
    context: Context = None,
    keep_data: Annotated[bool, typer.Option("--keep-data", help="Leave runs, queues and passwords there.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    timeout: Timeout = 600,
    dry_run: DryRun = False,
) -> None:
    """Remove everything that `up` made, and nothing else."""
    from kuberay import removal  # noqa: PLC0415

    kubectl, values = _open(overlay, own, context, dry=dry_run)
    if not (yes or dry_run or keep_data):
        typer.confirm(f"Delete {values.name} in namespace {values.namespace}, with all its runs?", abort=True)
    removal.down(kubectl, values, _say, keep_data=keep_data, timeout_s=timeout)


@app.command()
def manifests(
    folder: Annotated[Path, typer.Argument(help="Where to write.")] = Path("kuberay/manifests"),
) -> None:
    """Write the manifests of values.yaml, for `kubectl apply -k`."""
    from kuberay.kustomize import write  # noqa: PLC0415

    try:
        number = write(folder)
    except OSError as error:
        raise UsageError(f"can't write {folder}: {error.strerror}") from error
    _say(f"wrote {number} files to {folder}")


@app.command()
def chart(
    folder: Annotated[Path, typer.Argument(help="Where to write.")] = Path("chart"),
    overlay: Overlay = None,
    own: Own = None,
) -> None:
    """Write a Helm chart of a deployment: the objects of the manifests, with images, sizes and resources to set."""
    from kuberay.chart import write  # noqa: PLC0415
    from kuberay.values import load  # noqa: PLC0415

    number = write(load(overlay, own), folder)
    _say(f"wrote {number} files to {folder}: helm install NAME {folder} --namespace NAMESPACE --create-namespace")


@app.command()
def secrets(overlay: Overlay = None, own: Own = None) -> None:
    """Print Secrets with new passwords, for `kubectl create --filename -`; `up` makes them by itself."""
    from kuberay.deploy import new_secrets  # noqa: PLC0415
    from kuberay.kustomize import dump  # noqa: PLC0415
    from kuberay.values import load  # noqa: PLC0415

    typer.echo("---\n".join(dump(secret) for secret in new_secrets(load(overlay, own))), nl=False)
