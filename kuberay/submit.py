"""Runs as jobs of the Ray cluster, through Ray's Jobs API."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hzzray.errors import UsageError
from hzzray.runs.request import RunRequest
from kuberay import deploy, ray
from kuberay.forward import free_port
from kuberay.kubectl import Kubectl, KubeError
from kuberay.values import Values

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


def entrypoint(values: Values, options: Sequence[str]) -> tuple[str, str]:
    """Write a run's command line; what the user gives goes before what the values say. Returns it and the run's id."""
    from hzzray.runs.run import new_run_id  # noqa: PLC0415 (imports numerics)

    given = {option.split("=")[0] for option in options}
    if given & {"--engine", "--runs", "--broker"}:
        raise UsageError("a job of the cluster takes no --engine, --runs or --broker: those are the cluster's")
    run_id = _value(options, "--run-id") or new_run_id()
    command = ["hzzray", "run", *options]
    command += [] if "--run-id" in given else ["--run-id", run_id]
    if "--release" not in given and "--source" not in given:
        command += RunRequest.of(**values.data.asked).words()
    if not given & {"--actors", "--min-actors", "--max-actors"}:
        command += RunRequest.of(**values.workers.asked).words()
    return shlex.join(command), run_id


def _value(options: Sequence[str], name: str) -> str | None:
    for index, option in enumerate(options):
        if option == name and index + 1 < len(options):
            return options[index + 1]
        if option.startswith(f"{name}="):
            return option.split("=", 1)[1]
    return None


@contextmanager
def connected(kubectl: Kubectl, values: Values, address: str | None) -> Iterator[JobSubmissionClient]:
    """Connect to the dashboard: at ``address``, else through a port that is forwarded for the while."""
    if address is not None:
        yield _client(address, os.environ.get("RAY_AUTH_TOKEN"))
        return
    token = deploy.token(kubectl, values)
    with kubectl.forward(values.head_service, ray.DASHBOARD, free_port()) as route:
        yield _client(f"http://127.0.0.1:{route.local}", token)


def _client(address: str, token: str | None) -> JobSubmissionClient:
    # Ray reads its settings when it is imported; asked for no token, it would send none.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled" if token is None else "token")
    from ray.job_submission import JobSubmissionClient  # noqa: PLC0415

    headers = {"Authorization": f"Bearer {token}"} if token else None
    try:
        return JobSubmissionClient(address, headers=headers)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise KubeError(f"no Ray dashboard at {address}: {' '.join(str(error).split())}") from error


def start(client: JobSubmissionClient, command: str, run_id: str) -> str:
    """Submit a run; a second job of one run gets a name of its own."""
    known = {job.submission_id for job in client.list_jobs()}
    name = next(name for number in range(1, 10_000) if (name := _numbered(run_id, number)) not in known)
    try:
        return client.submit_job(entrypoint=command, submission_id=name)
    except (RuntimeError, ConnectionError) as error:
        raise KubeError(f"the Ray cluster takes no job: {' '.join(str(error).split())}") from error


def _numbered(run_id: str, number: int) -> str:
    return run_id if number == 1 else f"{run_id}-{number}"


def follow(client: JobSubmissionClient, submission: str, show: Callable[[str], None]) -> int:
    """Show a job's log until it ends; returns its exit code."""

    async def tail() -> None:
        async for text in client.tail_job_logs(submission):
            show(text)

    asyncio.run(tail())
    job = client.get_job_info(submission)
    if job.status == "SUCCEEDED":
        return 0
    show(f"job {submission}: {job.status}: {job.message}\n")
    return job.driver_exit_code or 1
