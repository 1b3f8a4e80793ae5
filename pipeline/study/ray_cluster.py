"""The only place that imports ray: reach or start a cluster, quietly, and run functions on it."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from tersor.errors import Unavailable

REACH_SECONDS = 5.0
"""How long the cluster's port may take to answer."""
JOIN_SECONDS = 30.0
"""How long joining may take once the port has answered."""

QUIET = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}


def connect(address: str | None, cores: int) -> Callable[[], None]:
    """Join a cluster, or start one on this machine; returns what leaves or ends it.

    Args:
        address: `host:port`, `auto`, or None for a cluster of its own on this machine.
        cores: how many the cluster of its own has.

    Raises:
        Unavailable: Ray is not installed, or the cluster cannot be reached or joined.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # these are read when ray is imported
    if address is None and "RAY_AUTH_MODE" not in os.environ:
        # a key of this process's own; Ray's default is to leave one in the home folder
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ray = _import_ray()
    # Ray tells of dead workers on stdout, which belongs to results; the engine records them itself
    ray._private.worker._worker_logs_enabled = False
    if address is not None:
        _try(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        return ray.shutdown
    # Ray's sockets want a short path, and its default, /tmp/ray, is shared with other users of the machine
    folder = tempfile.mkdtemp(prefix="ray-")
    try:
        ray.init(address="local", num_cpus=cores, _temp_dir=folder, **QUIET)
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise Unavailable(
            "Ray cannot be started on this machine", got=_first_line(error), todo="Use engine: local"
        ) from error

    def end() -> None:
        """Stop Ray and remove what it wrote."""
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)

    return end


def lost_worker() -> tuple[type[BaseException], ...]:
    """What a future raises when the worker, or its whole machine, died."""
    from ray import exceptions as e

    return (e.WorkerCrashedError, e.NodeDiedError, e.OutOfMemoryError, e.ObjectLostError)


def submitter(workers: int, threads: int, environment: Mapping[str, str]) -> Callable[..., "Future[Any]"]:
    """What runs function(*arguments) on the cluster.

    Args:
        workers: how many will run at once; they share the cluster's GPUs, if it has any.
        threads: cores each one claims.
        environment: variables of the workers' processes.

    Raises:
        Unavailable: no machine of the cluster has that many cores.
    """
    import ray

    largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if largest < threads:
        raise Unavailable(
            "no machine of the Ray cluster can run a trial",
            got=f"at most {largest:g} cores on one",
            wanted=f"{threads}, the trials' threads",
            todo="Raise `workers`, so that each trial takes fewer threads, or add a larger machine",
        )
    gpus = ray.cluster_resources().get("GPU", 0) / workers
    # Ray hides the GPUs from tasks that claim none, and takes either whole ones or a part of one
    claim = {"num_cpus": threads, "num_gpus": float(int(gpus)) if gpus >= 1 else int(gpus * 1e4) / 1e4}

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        """What a remote worker runs."""
        return function(*arguments)

    # max_retries: the engine itself runs a lost trial again
    remote = ray.remote(call).options(
        **claim, max_retries=0, scheduling_strategy="SPREAD", runtime_env={"env_vars": dict(environment)}
    )

    def submit(*arguments: Any) -> "Future[Any]":
        """Hand a call to the cluster."""
        return _plain(remote.remote(*arguments).future())

    return submit


def _plain(future: "Future[Any]") -> "Future[Any]":
    """The same future, raising what the function raised instead of Ray's wrapping of it."""
    from ray.exceptions import RayTaskError

    plain: Future[Any] = Future()

    def copy(ended: "Future[Any]") -> None:
        """Pass on how it ended."""
        error = ended.exception()
        if error is None:
            plain.set_result(ended.result())
        else:
            plain.set_exception(getattr(error, "cause", error) if isinstance(error, RayTaskError) else error)

    future.add_done_callback(copy)
    return plain


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise Unavailable(
            "the study asks for Ray, which is not installed",
            todo="pip install 'tersor[cluster]', or use engine: local",
        ) from error
    return ray


def _try(address: str) -> None:
    """Find out in bounded time whether the cluster can be joined.

    Ray itself tries for more than two minutes, and its C++ part may end the process; so the port is knocked
    at first, and then the joining is rehearsed in another process.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
        except OSError as error:
            raise _unreachable(address, str(error)) from error
    code = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"
    words = "no answer that Ray understands"
    with contextlib.suppress(subprocess.TimeoutExpired):
        tried = subprocess.run(
            [sys.executable, "-c", code, address], capture_output=True, timeout=JOIN_SECONDS, text=True
        )
        if tried.returncode == 0:
            return
        words = (tried.stderr.strip().splitlines() or [words])[-1]
    raise _unreachable(address, words)


def _unreachable(address: str, words: str) -> Unavailable:
    return Unavailable(
        "the Ray cluster cannot be reached",
        got=words,
        where=address,
        todo="Check `address` (`ray status` on the cluster's head tells it), or use engine: local",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
