"""Prefect's server for one command on one machine, where PREFECT_API_URL names none.

Prefect would start one itself when the first flow is called. This one starts while this process still imports what it
needs (Prefect's own start imports the whole server into this process too), and it ends when this process ends, in
whatever way: it would hold its database, and a port, for ever.
"""

import atexit
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from btm_core.errors import ConfigError
from tasks.imports import importing

__all__ = ["OwnServer"]

HOST = "127.0.0.1"
START_SECONDS = 120.0
"""Cold starts beside other work took more than 20 s."""
STOP_SECONDS = 5.0


class OwnServer:
    """A server process. Its standard input is open for as long as this process lives, and closes with it."""

    def __init__(self) -> None:
        """Start it; it reads Prefect's settings where this process does."""
        here = str(Path(__file__).parents[1])
        path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
        # Bound here, so that the port is known, nobody else's, and early callers wait in its queue.
        with socket.create_server((HOST, 0)) as listener:
            self._port: int = listener.getsockname()[1]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "flows.own_server", str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=2,
                pass_fds=[listener.fileno()],
                env={**os.environ, "PREFECT_SERVER_UI_ENABLED": "false", "PYTHONPATH": path},
                process_group=0,  # Ctrl-C is this process's to handle
            )
        atexit.register(self.stop)  # after Prefect's own threads, which started later, have sent their last

    @property
    def url(self) -> str:
        """Where its API is."""
        return f"http://{HOST}:{self._port}/api"

    def wait(self) -> None:
        """Wait until it answers. Raises ConfigError if it ends, or is silent."""
        connection = http.client.HTTPConnection(HOST, self._port, timeout=START_SECONDS)
        try:
            connection.request("GET", "/api/health")
            problem = "" if connection.getresponse().status == 200 else "it is not well"
        except OSError as error:
            problem = str(error)
        finally:
            connection.close()
        if problem:
            raise ConfigError(
                f"the Prefect server that BTM starts for a run did not start ({problem}; its own messages are above); "
                "look at its database, which PREFECT_HOME holds (BTM_HOME/prefect), or set PREFECT_API_URL to a server"
            )

    def stop(self) -> None:
        """End it, and wait until it has."""
        atexit.unregister(self.stop)
        assert self._process.stdin
        self._process.terminate()  # a child that this process forked may hold the pipe
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> None:
    """Serve on the socket of the descriptor that the command line names, until standard input closes."""
    threading.Thread(target=_end_with_parent, daemon=True).start()

    with importing():
        import uvicorn
        from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    config = uvicorn.Config(app, log_level="error", lifespan="on")
    uvicorn.Server(config).run([socket.socket(fileno=int(sys.argv[1]))])


def _end_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)  # to write what it holds
    os._exit(1)


if __name__ == "__main__":
    main()
