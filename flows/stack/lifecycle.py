"""The real stack on one machine: up, down, status. One JSON file remembers what was started, and with which secrets.

`up` starts what does not run and leaves the rest alone; `down` stops everything and leaves the data.
"""

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import psutil
from pydantic import BaseModel, Field, ValidationError

from flows.stack import services
from flows.stack.ports import free_ports, is_free
from flows.stack.processes import Record, StackError, alive, last_lines, launch, remember, stop, wait_until_ready
from flows.stack.services import PORTS, Place, Secrets, Service, write_private
from tasks.settings import runtime_settings

__all__ = ["down", "status", "up"]

READY_SECONDS = 120  # Prefect's server takes 25 s on two busy cores
GRACE_SECONDS = 5  # SeaweedFS waits 15 s for streams that never end; what it acknowledged survives a kill

DATABASES = {"prefect", "mlflow"}
"""Servers that make tables when they first start."""

REGISTER = "import sys; from flows.deploy import register_steps; register_steps(sys.argv[1])"

Say = Callable[[str], None]


class State(BaseModel):
    """What the state file holds."""

    token: str = Field(default_factory=lambda: token_hex(8), description="tells this stack's processes from others'")
    secrets: Secrets = Field(default_factory=Secrets)
    ports: dict[str, int] = Field(default_factory=dict)
    services: dict[str, Record] = Field(default_factory=dict, description="what was started and not stopped")
    unready: set[str] = Field(default_factory=set, description="servers never seen ready since their folder was made")


@dataclass
class Stack:
    """A stack's folder and state."""

    home: Path
    state: State

    @property
    def place(self) -> Place:
        """Where its services live."""
        return Place(self.home, self.state.ports, self.state.secrets)

    @property
    def workers(self) -> list[str]:
        """Names of the workers that were started and not stopped."""
        return sorted(name for name in self.state.services if name not in PORTS)

    def services(self) -> list[Service]:
        """Return the services that should run."""
        numbers = (int(name.removeprefix("worker-")) for name in self.workers)
        return [*services.core_services(self.place), *(services.worker(self.place, number) for number in numbers)]

    def save(self) -> None:
        """Write the state file."""
        write_private(_file(self.home), self.state.model_dump_json(indent=1))

    def runs(self, name: str) -> bool:
        """Return whether the process of a service runs."""
        return name in self.state.services and alive(self.state.services[name])


def up(home: Path, workers: int | None, say: Say) -> dict[str, Any]:
    """Start what does not run, and wait until all of it answers. Returns what `status` does.

    `workers` is how many there shall be; None leaves their number. If something does not get ready, all that this call
    started is stopped again.
    """
    services.find_weed()
    services.check_mlflow_auth()
    gpus = runtime_settings({}).gpu_names()
    with _opened(home) as stack:
        count = len(stack.workers) if workers is None else workers
        names = [f"worker-{number}" for number in range(1, count + 1)]
        _stop(stack, [name for name in stack.workers if name not in names])
        if _choose_ports(stack):
            _stop(stack, stack.workers)  # they know the old ones
        started: list[str] = []
        try:
            _start(stack, services.core_services(stack.place), started, say)
            if not all(stack.runs(name) for name in names):
                _register(stack.place)
                workers_wanted = [services.worker(stack.place, number, gpus) for number in range(1, count + 1)]
                _start(stack, workers_wanted, started, say)
        except BaseException:
            _stop(stack, started)
            raise
        exports = [f"export {name}={shlex.quote(value)}\n" for name, value in _environment(stack).items()]
        write_private(stack.place.folder / "env", "".join(exports))
        return _report(stack)


def down(home: Path, delete: bool, say: Say) -> list[str]:
    """Stop all that runs; with `delete` also remove the stack's data. Returns the names of what was stopped."""
    if not _file(home).parent.exists():
        return []
    with _opened(home) as stack:
        ran = [name for name in stack.state.services if stack.runs(name)]
        if ran:
            say(f"stopping {', '.join(ran)}")
        _stop(stack, stack.workers)  # first: they would report to servers that are gone
        _stop(stack, list(stack.state.services))
        (stack.place.folder / "env").unlink(missing_ok=True)
        if delete:
            shutil.rmtree(stack.place.folder)
        return ran


def status(home: Path) -> dict[str, Any]:
    """Return the state of each service, and the environment that reaches them."""
    return _report(Stack(home, _read(home)))


def _report(stack: Stack) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    if not stack.state.ports:  # it never ran
        nothing = {"state": "stopped", "url": None, "pid": None}
        rows = [{"name": name, **nothing, "log": str(stack.place.log(name))} for name in PORTS]
        return {"services": rows, "environment": {}}
    for service in stack.services():
        record, state = stack.state.services.get(service.name), "running"
        if record is None:
            state = "stopped"
        elif not alive(record):
            state = "died"
        else:
            try:
                service.ready(record.created)
            except Exception:
                state = "not answering"
        pid = record.pid if record is not None and state not in ("stopped", "died") else None
        log = str(stack.place.log(service.name))
        rows.append({"name": service.name, "state": state, "url": service.url, "pid": pid, "log": log})
    return {"services": rows, "environment": _environment(stack)}


def _environment(stack: Stack) -> dict[str, str]:
    return services.client_environment(stack.place, len(stack.workers))


def _start(stack: Stack, wanted: Iterable[Service], started: list[str], say: Say) -> None:
    """Start those that do not run, all at once, and wait for each; `started` gets their names."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    wanted = list(wanted)
    missing = [service for service in wanted if not stack.runs(service.name)]
    if missing:
        say(f"starting {', '.join(service.name for service in missing)}")
    _stop(stack, [service.name for service in missing])  # what may be left of one that was killed holds its port
    for name in DATABASES & {service.name for service in missing}:
        _begin_anew(stack, name, say)
    begin = time.monotonic()
    for service in missing:
        started.append(service.name)
        mark = f"{stack.state.token}/{service.name}"
        log = stack.place.log(service.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        for path, text in service.files.items():
            write_private(path, text)
        process = launch(service.command, service.environment, service.folder, log, mark)
        processes[service.name] = process
        stack.state.services[service.name] = remember(process, mark)
        stack.save()
    # One that an `up` left running which was itself killed was never waited for.
    for service in [one for one in wanted if one in missing or one.name in stack.state.unready]:
        record, log = stack.state.services[service.name], stack.place.log(service.name)
        seconds = READY_SECONDS - (time.monotonic() - begin)
        ready = lambda service=service, record=record: service.ready(record.created)  # noqa: E731
        started_before = None if service.name in processes else psutil.Process(record.pid)
        wait_until_ready(service.name, started_before or processes[service.name], ready, log, seconds)
        stack.state.unready.discard(service.name)
        stack.save()
        say(f"{service.name} is ready after {time.monotonic() - begin:.0f} s")


def _begin_anew(stack: Stack, name: str, say: Say) -> None:
    """Put a server's folder aside if it was never seen ready: stopped between two tables, it cannot make the others."""
    folder = stack.place.folder / name
    if name in stack.state.unready and folder.exists():
        aside = folder.with_name(f"{name}.unfinished-{time.time_ns()}")
        folder.rename(aside)
        say(f"{name} was stopped before it was ever seen ready, and begins anew; what it left is in {aside}")
    if not folder.exists():
        stack.state.unready.add(name)


def _stop(stack: Stack, names: Iterable[str]) -> None:
    """Stop services and whatever is left of them, and forget them."""
    names = list(names)
    nobody = {name: Record(pid=0, created=0, mark=f"{stack.state.token}/{name}") for name in names}
    if names:
        stop([stack.state.services.get(name, nobody[name]) for name in names], GRACE_SECONDS)
    if "s3" in names:
        for path in services.sockets(stack.state.ports):
            path.unlink(missing_ok=True)
    for name in names:
        stack.state.services.pop(name, None)
    stack.save()


def _register(place: Place) -> None:
    """Make the work pool and its deployment, in a process of its own: Prefect reads its settings when imported."""
    with_stack = services.worker(place, 0).environment
    log = place.log("register")
    done = subprocess.run(
        [sys.executable, "-c", REGISTER, services.POOL],
        env=with_stack,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=READY_SECONDS,
    )
    write_private(log, (done.stdout + done.stderr).decode(errors="replace"))
    if done.returncode:
        raise StackError(f"the work pool {services.POOL} could not be registered. {last_lines(log)}")


def _choose_ports(stack: Stack) -> bool:
    """Choose ports for what does not run: those of before if they are free. Returns whether old ones were replaced."""
    changed = False
    for name, ports in PORTS.items():
        if stack.runs(name):
            continue
        # What is left of a killed service would keep its port busy.
        _stop(stack, [name])
        known = [stack.state.ports[port] for port in ports if port in stack.state.ports]
        if len(known) != len(ports) or not all(map(is_free, known)):
            changed = changed or bool(known)
            stack.state.ports.update(zip(ports, free_ports(len(ports), stack.state.ports.values()), strict=True))
    stack.save()
    return changed


def _file(home: Path) -> Path:
    return home / "stack" / "stack.json"


def _read(home: Path) -> State:
    try:
        return State.model_validate_json(_file(home).read_text())
    except FileNotFoundError:
        return State()
    except ValidationError as error:
        raise StackError(
            f"{_file(home)} is damaged: {error.errors()[0]['msg']}; remove it, and btm up starts anew"
        ) from None


@contextmanager
def _opened(home: Path) -> Iterator[Stack]:
    """Hold the stack of a folder: nobody else starts or stops anything meanwhile."""
    folder = home / "stack"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StackError(
            f"BTM_HOME {home} cannot be used as a folder: {error.strerror}; choose another, or unset it"
        ) from None
    with os.fdopen(os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError(f"another btm up or btm down is at work on {folder}; wait until it is done") from None
        yield Stack(home, _read(home))
