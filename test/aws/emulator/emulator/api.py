"""How the services call each other, and how one is added to moto.

A call goes through boto3 and the emulator's own WSGI application, without a socket and without the injected faults,
which are for the callers outside.
"""

import functools
import io
import json
from urllib.parse import urlsplit

import boto3
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import ClientError
from moto.core.exceptions import ServiceException
from moto.core.responses import ActionResult
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.test import EnvironBuilder, run_wsgi_app

ACCOUNT = "123456789012"

application = DomainDispatcherApplication(create_backend_app)


class AWSError(ServiceException):
    """AWSError(code, message) is what an API answers with."""


def operation(response_class, *, json_body=False):
    """Adds the decorated function to moto's response_class as the operation of its name.

    The function gets moto's request and the parsed parameters, and returns the result as botocore names it.
    """

    def add(function):
        def method(request):
            parameters = json.loads(request.body or "{}") if json_body else request._get_params()
            return ActionResult(function(request, parameters))

        method.__name__ = function.__name__
        setattr(response_class, function.__name__, method)
        return function

    return add


def extend(owner, name=None):
    """Replaces a method of a class of moto; the decorated function gets the original as its first argument."""

    def replace(function):
        method = name or function.__name__
        original = getattr(owner, method)

        @functools.wraps(function)
        def extended(*args, **kwargs):
            return function(original, *args, **kwargs)

        setattr(owner, method, extended)
        return function

    return replace


@functools.lru_cache(maxsize=None)
def client(service, region, hook=None):
    """A boto3 client of another service of this emulator; the hook sees each call's parameters."""
    session = boto3.session.Session(aws_access_key_id="EMULATOR", aws_secret_access_key="emulator", region_name=region)
    config = Config(retries={"total_max_attempts": 1}, parameter_validation=True)
    made = session.client(service, config=config, endpoint_url="http://emulator.invalid")
    made.meta.events.register("before-send", _send)
    if hook:
        made.meta.events.register("provide-client-params", hook)
    return made


class _Body(io.BytesIO):
    def stream(self, **_):
        while chunk := self.read(65536):
            yield chunk


def _send(request, **_):
    url = urlsplit(request.url)
    headers = {k: v.decode() if isinstance(v, bytes) else v for k, v in request.headers.items()}
    builder = EnvironBuilder(
        method=request.method, base_url=f"{url.scheme}://{url.netloc}", path=url.path or "/", query_string=url.query,
        headers=headers, data=request.body or b"", content_type=headers.get("Content-Type"),
    )
    body, status, answer = run_wsgi_app(application, builder.get_environ())
    return AWSResponse(request.url, int(status.split()[0]), dict(answer.items()), _Body(b"".join(body)))


def call(service, region, name, properties, hook=None):
    """Calls an operation with properties as a template has them, and returns the answer.

    The names of properties and API members differ in the case of the first letter only; the types are those that YAML
    happened to give. Both are put right by the API's model; a property that the API does not know is an error.
    """
    made = client(service, region, hook)
    model = made.meta.service_model.operation_model(name)
    arguments = shaped(properties, model.input_shape, "") if model.input_shape else {}
    method = next(m for m, op in made.meta.method_to_api_mapping.items() if op == name)
    return getattr(made, method)(**arguments)


def shaped(value, shape, path):
    """value with the names and types of a botocore shape."""
    kind = shape.type_name
    if kind == "structure" and isinstance(value, dict):
        members = {name.lower(): name for name in shape.members}
        result = {}
        for key, item in value.items():
            name = members.get(key.lower())
            if name is None:
                raise AWSError("ValidationError", f"#{path}: extraneous key [{key}] is not permitted")
            result[name] = shaped(item, shape.members[name], f"{path}/{key}")
        return result
    if kind == "list":
        if not isinstance(value, list):
            raise AWSError("ValidationError", f"#{path}: expected type: JSONArray, found: {type(value).__name__}")
        return [shaped(item, shape.member, f"{path}/{i}") for i, item in enumerate(value)]
    if kind == "map" and isinstance(value, dict):
        return {str(k): shaped(v, shape.value, f"{path}/{k}") for k, v in value.items()}
    try:
        return _scalar(value, kind)
    except (TypeError, ValueError):
        raise AWSError("ValidationError", f"#{path}: expected type: {kind}, found: {value!r}") from None


def _scalar(value, kind):
    if kind in ("integer", "long"):
        return int(str(value))
    if kind in ("float", "double"):
        return float(value)
    if kind == "boolean":
        if str(value).lower() not in ("true", "false"):
            raise ValueError
        return str(value).lower() == "true"
    if kind == "string":
        return text(value)
    if isinstance(value, (dict, list)) or kind in ("structure", "map"):
        raise TypeError
    return value


def text(value):
    """A value as CloudFormation writes it into a string."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (dict, list)):
        return json.dumps(value)
    return str(value)


def reason(error):
    """The reason of a failed call, as AWS words it in a stack event."""
    if isinstance(error, ClientError):
        details = error.response["Error"]
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        return (f"{details['Message']} (Operation: {error.operation_name}, Status Code: {status}, "
                f"Error: {details['Code']})")
    return getattr(error, "message", None) or f"{type(error).__name__}: {error}"


def delete_quietly(function, *codes, **arguments):
    """Deletes what may be gone already."""
    try:
        function(**arguments)
    except ClientError as error:
        if error.response["Error"]["Code"] not in codes:
            raise
