"""Jobs of a queue over the machines of a Ray cluster (Moritz et al. 2018), one job a graphics card or a machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from omokage.errors import InputError, InternalError, MissingDependencyError
from omokage.pipelines.queue_jobs import Job, Outcome, State

# In the place of a cluster's address: workers on this machine alone.
LOCAL = "local"
# Of a job whose worker was lost, with its machine perhaps; it goes on after its last finished window.
RETRIES = 2


def run_with_ray(
    jobs: Sequence[Job], run: Callable[[Job], Outcome], address: str, *, on_card: bool
) -> Iterator[Outcome]:
    """Outcomes as jobs end. All machines have omokage and the weights, and see the files under the same paths.

    address: of a running cluster, or 'local'.  on_card: a job takes a graphics card where the cluster has one, else a
    whole machine. Raises MissingDependencyError without Ray, InputError for a cluster that does not answer.
    """
    # Nothing leaves the user's machines.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = _ray()
    try:
        if address == LOCAL:
            ray.init(include_dashboard=False, log_to_driver=False)
        else:
            ray.init(address=address, log_to_driver=False)
    except Exception as error:  # Ray raises anything, plain exceptions too
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"no Ray cluster answers at '{address}' ({cause}); start one with 'ray start --head', or use --ray {LOCAL}"
        ) from error
    try:
        remote = ray.remote(max_retries=RETRIES, **_share(ray, on_card=on_card))(run)
        running = {remote.remote(job): job for job in jobs}
        while running:
            (ended,), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(ended)
            try:
                yield ray.get(ended)
            except ray.exceptions.RayError as error:
                cause = f"{type(error).__name__}: {error}".splitlines()[0]
                said = f"its worker was lost ({cause}); the same command goes on with it"
                yield Outcome(job, State.FAILED, 0.0, (said,), InternalError.exit_code)
    finally:
        ray.shutdown()


def _share(ray: Any, *, on_card: bool) -> dict[str, float]:
    """What a job takes of a cluster."""
    if on_card and ray.cluster_resources().get("GPU", 0) >= 1:
        return {"num_gpus": 1, "num_cpus": 1}
    cores = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    return {"num_cpus": min((count for count in cores if count), default=1)}


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            "a queue over several machines needs the package ray, which is not installed; run: "
            "pip install 'omokage[queue]', or leave --ray out"
        ) from error
    return ray
