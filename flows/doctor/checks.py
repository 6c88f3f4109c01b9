"""What is looked at: each check returns lines that say what was found, and what to do where that is not well."""

import difflib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from btm_core.errors import BTMError
from btm_core.storage import StorageSettings, Store, storage_settings
from btm_core.storage.cache import FileCache
from btm_core.urls import without_credentials
from tasks.housekeeping.inventory import beside
from tasks.settings import RuntimeSettings, visible_gpus
from tasks.system import available_memory, gpus

__all__ = ["Check", "examine", "packages", "space", "variables"]

STORE_SECONDS, SLOW_SECONDS = 20.0, 2.0
TORCH_SECONDS = 120.0
LITTLE_DISK, NO_DISK = 5e9, 0.2e9
LITTLE_MEMORY = 2e9
WHY = {
    "fastapi": "Prefect's server does not start with it",
    "sqlalchemy": "Prefect's server then never starts a scheduled run",
}
"""What comes of versions that their own packages allow."""
EXTRAS = {"ray": "engine ray", "onnx": "export to ONNX", "stack": "btm up"}
OTHER_VARIABLES = ("BTM_SERVE_", "BTM_STACK_")
"""Beginnings of those that other programs of BTM read."""


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it is, what was found, and what to do."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    todo: str = ""


def examine(settings: RuntimeSettings) -> list[Check]:
    """Look at everything; what takes time is looked at beside each other."""
    checks: list[Callable[[], list[Check]]] = [
        lambda: [python()],
        lambda: packages(settings.engine),
        lambda: devices(settings),
        lambda: [processor(settings), memory()],
        lambda: disks(settings),
        lambda: [store(settings)],
        lambda: [prefect(settings)],
        lambda: [mlflow(settings)],
        lambda: [variables(dict(os.environ))],
    ]
    return [check for found in beside(_carefully, checks) for check in found]


def _carefully(check: Callable[[], list[Check]]) -> list[Check]:
    """Return what a check finds; what it stumbles over is a finding, too."""
    try:
        return check()
    except Exception as error:
        words = without_credentials(f"{type(error).__name__}: {error}")
        return [Check("doctor", "fail", words, "this is a fault of btm doctor: please report it")]


def python() -> Check:
    """Python, and the package itself."""
    return Check("Python", "ok", f"{platform.python_version()}, btm {metadata.version('btm')}, {sys.executable}")


def packages(engine: str = "local") -> list[Check]:
    """Whether what is installed is what btm asks for: of itself, and of its extras as far as they are there."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in metadata.requires("btm") or []]
    own = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    faults = [fault for one in own if (fault := _fault(one.name, str(one.specifier)))]
    rows = [Check("packages", "ok", f"all {len(own)} that btm needs, in versions that work together")]
    if faults:
        rows = [Check("packages", "fail", "; ".join(faults), "install them anew: pip install --upgrade btm")]
    for extra, use in EXTRAS.items():
        parts = [one for one in wanted if one.marker is not None and one.marker.evaluate({"extra": extra})]
        parts = [one for one in parts if one not in own]
        absent = [fault for one in parts if (fault := _fault(one.name, str(one.specifier)))]
        needed = extra == "ray" and engine == "ray"
        state: Literal["ok", "fail"] = "fail" if absent and needed else "ok"
        found = f"not installed, for {use}" if len(absent) == len(parts) else "; ".join(absent) or f"installed: {use}"
        rows.append(Check(f"extra {extra}", state, found, f'pip install "btm[{extra}]"' if absent else ""))
    return rows


def _fault(name: str, specifier: str) -> str | None:
    """Return what is wrong with an installed package; None if nothing is."""
    from packaging.specifiers import SpecifierSet

    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is not installed"
    if SpecifierSet(specifier).contains(version, prereleases=True):
        return None
    why = f" ({WHY[name]})" if name in WHY else ""
    return f"{name} {version} is not {specifier}{why}"


def devices(settings: RuntimeSettings) -> list[Check]:
    """torch, and whether it computes on the processor and on each GPU."""
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-P", "-m", "flows.doctor.kernel"]
    environment = {**os.environ, "PYTHONPATH": path}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TORCH_SECONDS)
    except subprocess.TimeoutExpired:
        todo = "see whether the GPU's driver answers: nvidia-smi"
        return [Check("torch", "fail", f"a small network did not end within {TORCH_SECONDS:.0f} s", todo)]
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
        return [Check("torch", "fail", words, "install torch anew; see https://pytorch.org for your driver")]
    found = json.loads(done.stdout)
    built = f"CUDA {found['cuda']}" if found["cuda"] else "no CUDA"
    rows = []
    sizes = {f"cuda:{index}": gpu.memory for index, gpu in enumerate(gpus())}
    for device in found["devices"]:
        name, on_gpu = device["device"], device["device"] != "cpu"
        memory = f", {sizes[name] / 2**30:.0f} GiB" if name in sizes else ""
        text = f"torch {found['torch']} ({built}) computes on {device['name']}{memory}"
        if device["error"] is None:
            rows.append(Check(f"GPU {name.removeprefix('cuda:')}" if on_gpu else "torch", "ok", text))
        else:
            todo = "install a torch that was built for this GPU and driver, or leave it out: CUDA_VISIBLE_DEVICES"
            rows.append(Check(name, "fail", f"torch cannot compute on {device['name']}: {device['error']}", todo))
    seen, used = visible_gpus(), len(found["devices"]) - 1
    if settings.device != "cpu" and seen > used:
        todo = "install a torch with CUDA, or set BTM_DEVICE=cpu to say that you mean it"
        rows.append(Check("GPU", "fail", f"{seen} GPUs are visible, torch ({built}) uses {used}", todo))
    elif settings.device == "cuda" and not used:
        rows.append(Check("GPU", "fail", "BTM_DEVICE is cuda, and no GPU is visible", "set BTM_DEVICE=auto or cpu"))
    elif not used:
        rows.append(Check("GPU", "ok", "none: networks are trained on the processor"))
    return rows


def processor(settings: RuntimeSettings) -> Check:
    """Cores, and whether fine-tunes ask for more of them than there are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        slots = settings.slots()
    except BTMError as error:
        return Check("workers", "fail", str(error), "correct that setting")
    threads = settings.finetune_threads * len(slots)
    kind = "GPU" if slots and slots[0] is not None else "CPU"
    found = f"{cores} cores; {len(slots)} fine-tunes at a time on the {kind}"
    if kind == "CPU" and threads > cores:
        return Check("workers", "warn", f"{found} take {threads} threads", "lower BTM_WORKERS or BTM_FINETUNE_THREADS")
    return Check("workers", "ok", found)


def memory() -> Check:
    """Memory that may still be used."""
    free = available_memory()
    found = f"{free / 2**30:.1f} GiB free"
    if free < LITTLE_MEMORY:
        return Check("memory", "warn", found, "end other programs, or lower BTM_WORKERS")
    return Check("memory", "ok", found)


def disks(settings: RuntimeSettings) -> list[Check]:
    """Space where the home, the cache and temporary files lie; that of the store is told with the store."""
    places = {
        f"home {settings.home}": settings.home.absolute(),
        "cache": FileCache.of(storage_settings()).folder,
        "temporary files": Path(tempfile.gettempdir()),
    }
    return [space(name, folder) for name, folder in places.items()]


def space(name: str, folder: Path) -> Check:
    """Space that is left on the disk of a folder, or of the nearest above it that is there."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK):
        return Check(name, "fail", f"{there} may not be written to", "choose another folder, or change its rights")
    left = shutil.disk_usage(there).free
    return _level(name, f"{left / 1e9:.1f} GB free at {folder}", left)


def _level(name: str, found: str, free: float) -> Check:
    if free >= LITTLE_DISK:
        return Check(name, "ok", found)
    return Check(name, "fail" if free < NO_DISK else "warn", found, "make room, or choose another folder")


def store(settings: RuntimeSettings) -> Check:
    """Whether the store can be written and read, and how long that takes."""
    try:
        there = Store(settings.store_url).within(STORE_SECONDS)
        free = there.free_bytes()
        if free is not None and not Path(unquote(there.url.removeprefix("file://"))).exists():
            there.check_there()  # nothing is made only to see whether it could be
            found = f"{there.url} is made by the first run"
        else:
            there.check_writable()
            started = time.monotonic()  # the first request also connects
            there.read("runs", ".none")
            took = time.monotonic() - started
            found = f"{there.url} can be written and read; a request takes {1000 * took:.0f} ms"
            if took > SLOW_SECONDS:
                return Check("store", "warn", found, "it is slow: is it far away, or busy?")
    except BTMError as error:
        return Check("store", "fail", without_credentials(str(error)), "see docs/store.md; another: --store, BTM_STORE")
    return Check("store", "ok", found) if free is None else _level("store", f"{found}; {free / 1e9:.1f} GB free", free)


def prefect(settings: RuntimeSettings) -> Check:
    """Whether the Prefect server that is named answers; without one, each command has its own."""
    from flows.environment import check_server, prepare_prefect

    url = os.environ.get("PREFECT_API_URL")
    if not url and settings.home.is_dir():
        prepare_prefect(settings.home)
        from prefect.settings import get_current_settings

        url = get_current_settings().api.url  # of a profile
    if not url and settings.engine != "workpool":
        return Check("Prefect", "ok", "no PREFECT_API_URL: each command starts a server of its own")
    try:
        with tempfile.TemporaryDirectory(prefix="btm-") as folder:
            if not settings.home.is_dir():
                prepare_prefect(Path(folder))
            check_server(settings, url)
    except BTMError as error:
        return Check("Prefect", "fail", without_credentials(str(error)), "start it, or unset PREFECT_API_URL")
    pool = f", and knows the work pool {settings.work_pool}" if settings.engine == "workpool" else ""
    return Check("Prefect", "ok", f"{without_credentials(url or '')} answers{pool}")


def mlflow(settings: RuntimeSettings) -> Check:
    """Whether the tracking server answers; a local database is made by the first run."""
    from tasks.tracking import mlflow_client

    uri = settings.mlflow_uri
    shown = without_credentials(uri)
    if uri.startswith("sqlite:///"):
        there = Path(uri.removeprefix("sqlite:///")).exists()
        return Check("MLflow", "ok", shown if there else f"{shown}, made by the first run")
    os.environ |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # one question
    try:
        mlflow_client(uri).search_experiments(max_results=1)
    except Exception as error:  # each kind of tracking store raises its own
        words = without_credentials(str(error)).splitlines()[0]
        cause = re.search(r"\[Errno[^\"')]*", words)  # the end of a long chain of who called whom
        words = cause.group() if cause else words
        return Check("MLflow", "fail", f"{shown}: {words}", "start it, or correct MLFLOW_TRACKING_URI and its password")
    return Check("MLflow", "ok", f"{shown} answers")


def variables(environment: dict[str, str]) -> Check:
    """Which settings are made by variables; one that nobody reads is a slip of the pen."""
    known = [f"BTM_{name.upper()}" for name in RuntimeSettings.model_fields]
    known += [f"BTM_STORE_{name.upper()}" for name in StorageSettings.model_fields]
    given = sorted(name for name in environment if name.startswith("BTM_") and not name.startswith(OTHER_VARIABLES))
    unknown = [name for name in given if name not in known]
    if unknown:
        close = [match[0] for name in unknown if (match := difflib.get_close_matches(name, known, n=1))]
        todo = f"did you mean {', '.join(close)}? " if close else ""
        return Check(
            "settings", "warn", f"nobody reads {', '.join(unknown)}", f"{todo}docs/reference/settings.md has all"
        )
    shown = ", ".join(f"{name}={without_credentials(environment[name])}" for name in given)
    return Check("settings", "ok", shown or "all by default")
