"""Starts tersor commands fast: imports the heavy libraries once, then forks a process for each command.

Every command is a process of its own that can be killed, with its own memory, folder and output files;
only the imports (some ten seconds) are shared. Reads one JSON request a line on stdin and answers with
one JSON line on stdout: {"start": {...}} -> {"pid": n}, {"wait": pid, "seconds": n} -> {"code": n}.
"""

import builtins
import ctypes
import errno
import importlib
import io
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

HEAVY = (
    "tersor.pipeline.cli.main", "tersor.pipeline.run", "tersor.pipeline.deploy",
    "tersor.pipeline.shipping.recheck", "tersor.pipeline.show.terminal", "tersor.export.codec.ledger",
    "torch._dynamo", "torch.onnx", "onnxscript", "onnxruntime",
    "onnxruntime.quantization", "nni.compression.speedup", "nni.compression.pruning",
    "sklearn.datasets", "matplotlib.figure", "PIL.Image",
    # what the first export loads, two seconds of each command
    "networkx", "sympy.tensor.tensor", "torch.export._trace", "torch.export.pt2_archive",
    "torch._export.non_strict_utils", "torch._export.serde.serialize", "torch._functorch.aot_autograd",
    "torch._functorch._aot_autograd.graph_compile", "torch.onnx._internal.exporter._core",
    "torch.onnx._internal.exporter._compat", "onnxscript.function_libs.torch_lib.ops",
    "onnxscript.rewriter.onnx_fusions", "onnxscript._framework_apis.torch_2_9", "torch._inductor.sizevars",
    "torch.onnx._internal.exporter._torchlib.ops", "tersor.pipeline.structure.stage",
)  # fmt: skip


def serve() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print while they are imported
    for name in HEAVY:
        importlib.import_module(name)
    _count_as_quiet()
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer = {"pid": _start(**request["start"])}
        else:
            answer = {"code": _wait(request["wait"], request["seconds"])}
        answers.write(json.dumps(answer) + "\n")


def _count_as_quiet() -> None:
    """Commands are run beside other tests, and would refuse to time anything."""
    from tersor.export.timing import benchmark, clock

    benchmark.MOST_SITTINGS = benchmark.FEWEST_SITTINGS
    clock.Signs.busy = lambda *_, **__: None  # type: ignore[assignment, misc]


def _start(
    arguments: list[str],
    cwd: str,
    stdout: str,
    stderr: str,
    environment: dict[str, str],
    file_limit_bytes: int | None,
    kill_at_rename: int | None,
    no_space_at: int | None,
    kill_at_file: int | None,
) -> int:
    """Fork a command; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may have it ignored
        _redirect(stdout, stderr)
        os.chdir(cwd)
        os.environ.update(environment)
        _obey_permissions()
        if kill_at_rename is not None:
            _die_at_rename(kill_at_rename)
        if no_space_at is not None:
            _when_files_are_opened(no_space_at, _no_space)
        if kill_at_file is not None:
            _when_files_are_opened(kill_at_file, _die)
        if file_limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit_bytes, file_limit_bytes))
        code = _command(arguments)
    finally:
        os._exit(code)
    return 0


def _command(arguments: list[str]) -> int:
    from tersor.pipeline.cli.main import main

    sys.argv = ["tersor", *arguments]
    try:
        main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _redirect(stdout: str, stderr: str) -> None:
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        file = os.open(path, flags, 0o644)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115


def _obey_permissions() -> None:
    """Root may write anywhere; give that up, so that a folder's mode means something in every test run."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    libc, header = ctypes.CDLL(None), Header(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert libc.capget(ctypes.byref(header), sets) == 0
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(ctypes.byref(header), sets) == 0


def _die_at_rename(count: int) -> None:
    """Kill this process, as the system would, when it is about to make its `count`-th rename."""
    rename, left = os.replace, [count]

    def replace(*arguments: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*arguments, **options)

    os.replace = replace  # type: ignore[assignment]


def _no_space(path: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _die(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _when_files_are_opened(count: int, act: Callable[[Any], None]) -> None:
    """Call `act` with the path when the `count`-th file is opened for writing, and at every later one."""
    left, plain_open, plain_os_open = [count], open, os.open

    def take(path: Any) -> None:
        if _importing():
            return  # a library that fails half-way through its import stays broken: not what is tested
        left[0] -= 1
        if left[0] <= 0:
            act(path)

    def text_open(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if not isinstance(file, int) and set(mode) & set("wxa+"):
            take(file)
        return plain_open(file, mode, *arguments, **options)

    def low_open(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            take(path)
        return plain_os_open(path, flags, *arguments, **options)

    builtins.open = io.open = text_open  # type: ignore[assignment]
    os.open = low_open


def _importing() -> bool:
    """Whether an import is under way: libraries fill caches of their own on their first one."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _wait(pid: int, seconds: float) -> int:
    """The exit code of a command, minus the signal that ended it; killed when it takes too long."""
    until = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


if __name__ == "__main__":
    serve()
