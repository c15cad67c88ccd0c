"""What a test can set in the emulator: faults, what a node does when it boots, what a command prints on a node.

Requests are JSON posted to /_emulator/…; README.md describes them.
"""

import io
import json
import threading

from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Request, Response

from . import authorization

JSON_SERVICES = {"acm-pca", "ecs", "ssm", "secretsmanager", "events", "logs", "kms"}


class Settings:
    """What the control API sets."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.patience = 0.0  # seconds for which a request waits with a stack that waits for signals
        self.boot = "none"  # "none"; "register" and signal; or "exec" a program
        self.boot_program = None
        self.attributes = {"sevagent.attested": "true"}  # of nodes that are booted by "register"
        self.command_program = None  # what answers SSM Run Command; without one, no node is managed
        self.slow_drains = False  # nodes that are terminated wait for their tasks
        self.endpoint = None  # of this emulator, for the programs


settings = Settings()


class Holds:
    """Resources whose creation lasts until a test lets it end, by their logical IDs."""

    def __init__(self):
        self._changed = threading.Condition()
        self._held = set()  # guarded by _changed

    def add(self, resource):
        with self._changed:
            self._held.add(resource)

    def release(self, resource=None):
        """Lets one go on, or all."""
        with self._changed:
            self._held -= {resource} if resource else set(self._held)
            self._changed.notify_all()

    def has(self, resource):
        with self._changed:
            return resource in self._held

    def wait(self, resource):
        with self._changed:
            self._changed.wait_for(lambda: resource not in self._held)


holds = Holds()


class Faults:
    """Answers to be given instead of the service's own, each for a number of times."""

    def __init__(self):
        self._lock = threading.Lock()
        self._faults = []
        self.calls = {}  # "service:Operation": number, of the callers outside

    def add(self, fault):
        fault = {"operation": "*", "code": "InternalFailure", "status": 500, "message": "injected fault", "times": 1,
                 **fault}
        with self._lock:
            self._faults.append(fault)

    def clear(self):
        with self._lock:
            self._faults.clear()
            self.calls.clear()

    def take(self, service, operation):
        """The fault for this call, if there is one; times below zero mean for ever."""
        with self._lock:
            key = f"{service}:{operation}"
            self.calls[key] = self.calls.get(key, 0) + 1
            for fault in self._faults:
                if fault["times"] and fault["service"] in (service, "*") and fault["operation"] in (operation, "*"):
                    fault["times"] -= 1
                    return fault
        return None


faults = Faults()


def identify(request):
    """Service and operation of an AWS request, from its signature and its body."""
    scope = request.headers.get("Authorization", "").partition("Credential=")[2].split(",")[0].split("/")
    service = scope[3] if len(scope) > 3 else ""
    target = request.headers.get("X-Amz-Target", "")
    named = request.form.get("Action") or request.args.get("Action", "")
    if service == "imagebuilder":  # whose paths are the operations' names
        named = request.path.removeprefix("/")
    return service, target.rpartition(".")[2] or named


def _access_key(request):
    return request.headers.get("Authorization", "").partition("Credential=")[2].split("/")[0]


def error(service, code, message, status):
    """An error in the protocol of a service."""
    if service in JSON_SERVICES:
        body = json.dumps({"__type": code, "message": message})
        return Response(body, status, {"x-amzn-ErrorType": code}, content_type="application/x-amz-json-1.1")
    if service == "ec2":
        body = (f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
                "<RequestID>emulated</RequestID></Response>")
    else:
        body = (f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>"
                "<RequestId>emulated</RequestId></ErrorResponse>")
    return Response(body, status, content_type="text/xml")


class Front:
    """The WSGI application: the control API, faults, and behind them the services."""

    def __init__(self, services, actions):
        self.services, self.actions = services, actions

    def __call__(self, environ, start_response):
        request = Request(environ)
        if request.path.startswith("/_emulator/"):
            return self._control(request)(environ, start_response)
        # The services read the body again.
        request.get_data(cache=True, parse_form_data=False)
        service, operation = identify(request)
        if fault := faults.take(service, operation):
            return error(service, fault["code"], fault["message"], fault["status"])(environ, start_response)
        try:
            authorization.check_request(_access_key(request), service, operation, request)
        except authorization.AWSError as denied:
            code, status = ("AccessDeniedException", 400) if service in JSON_SERVICES else (denied.code, 403)
            return error(service, code, denied.message, status)(environ, start_response)
        return self.services(_replayed(environ, request), start_response)

    def _control(self, request):
        action = self.actions.get(request.path.removeprefix("/_emulator/"))
        if action is None:
            return Response("no such action\n", 404)
        body = request.get_data()
        try:
            result = action(**(json.loads(body) if body else {}))
        except (TypeError, ValueError, KeyError, HTTPException) as mistake:
            return Response(f"{mistake}\n", 400)
        return Response(json.dumps(result or {}), content_type="application/json")


def _replayed(environ, request):
    kept = {k: v for k, v in environ.items() if not k.startswith("werkzeug.")}
    return {**kept, "wsgi.input": io.BytesIO(request.get_data())}


def fault(service, **rest):
    faults.add({"service": service, **rest})


def clear_faults():
    faults.clear()


def calls():
    """How often each operation was called from outside."""
    return dict(faults.calls)


def boot(mode, program=None, attributes=None):
    if mode not in ("none", "register", "exec") or (mode == "exec") != bool(program):
        raise ValueError("mode is none, register, or exec with a program")
    settings.boot, settings.boot_program = mode, program
    if attributes is not None:
        settings.attributes = attributes


def command(program=None):
    settings.command_program = program


def patience(seconds):
    settings.patience = float(seconds)


ACTIONS = {"hold": holds.add, "release": holds.release, "fault": fault, "clear-faults": clear_faults, "calls": calls,
           "boot": boot, "command": command, "patience": patience}
