"""The emulator as a server on a loopback port."""

import threading

from moto.moto_api._internal.models import moto_api_backend
from werkzeug.serving import WSGIRequestHandler, make_server

# Importing them changes moto.
from . import acmpca, api, autoscaling, cloudformation, ec2, ecs, events, fleet, imagebuilder, nodes, ssm  # noqa: F401
from .control import ACTIONS, Front, faults, holds, settings
from .damage import damage


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # AWS clients keep connections

    def log(self, *_):
        pass


def reset():
    """Forgets everything, as if newly started."""
    endpoint = settings.endpoint
    moto_api_backend.reset()
    for module in (acmpca, cloudformation, imagebuilder, nodes, ssm):
        module.reset()
    faults.clear()
    holds.release()
    settings.reset()
    settings.endpoint = endpoint


class Server:
    """Server().start() serves until stop(); url is where."""

    def __init__(self, host="127.0.0.1", port=0):
        actions = {**ACTIONS, "reset": reset, "expire": cloudformation.expire, "fleet": fleet.create,
                   "event": events.emit, "damage": damage,
                   "drains": autoscaling.drains, "private-ca": acmpca.settings, "settle": ssm.settle,
                   "health": lambda: {"status": "ok"}}
        self._server = make_server(host, port, Front(api.application, actions), threaded=True, request_handler=_Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = settings.endpoint = f"http://{host}:{self.port}"

    def start(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
