"""EC2 Image Builder, which moto lacks: a pipeline's objects, checked by the API's own model and against each other.

Nothing is built: start_image_pipeline_execution registers an AMI with its parent's boot mode in each region of the
distribution at once, and runs no component.
"""

import datetime
import functools
import json
import re
import threading
import uuid

import botocore.session
import yaml
from botocore.exceptions import ClientError
from moto.ec2.models import ec2_backends
from moto.iam.models import AWSManagedPolicy, IAMBackend, iam_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from werkzeug.wrappers import Request, Response

from . import api, events
from .ec2 import add_image

_lock = threading.RLock()
_objects = {}  # ARN: {"arn", "kind", "name", "region", and what was given}

# AWS's managed policies for it, which moto loads only with a thousand others. The emulator authorizes nothing.
POLICIES = ("arn:aws:iam::aws:policy/EC2ImageBuilderExecutionPolicy",
            "arn:aws:iam::aws:policy/service-role/EC2ImageBuilderLifecycleExecutionPolicy")


@api.extend(IAMBackend)
def attach_role_policy(original, self, policy_arn, role_name):
    if policy_arn in POLICIES and policy_arn not in self.managed_policies:
        path, _, name = policy_arn.partition(":policy")[2].rpartition("/")
        self.managed_policies[policy_arn] = AWSManagedPolicy(name, account_id=api.ACCOUNT, region="aws",
                                                             path=path + "/", document="{}")
    return original(self, policy_arn, role_name)


def reset():
    _objects.clear()


class Refused(Exception):
    def __init__(self, code, message, status=400):
        super().__init__(message)
        self.code, self.status = code, status


@functools.lru_cache(maxsize=None)
def _model():
    return botocore.session.get_session().get_service_model("imagebuilder")


@functools.lru_cache(maxsize=None)
def _routes():
    operations = [_model().operation_model(name) for name in _model().operation_names]
    return {(o.http["method"], o.http["requestUri"].split("?")[0]): o for o in operations}


def check(value, shape, path=""):
    """Patterns, enumerations, lengths and required members, which boto3 leaves to the service."""
    def wrong(rule):
        raise Refused("InvalidParameterValueException",
                      f"The value supplied for parameter '{path.lstrip('.')}' is not valid. {rule}")

    if shape.type_name == "structure":
        for name in shape.required_members:
            if name not in value:
                raise Refused("InvalidRequestException",
                              f"The required parameter '{f'{path}.{name}'.lstrip('.')}' is missing.")
        for name, item in value.items():
            check(item, shape.members[name], f"{path}.{name}")
        return
    limits = shape.metadata
    sized = isinstance(value, (str, list, dict))
    size = value if shape.type_name in ("integer", "long") else len(value) if sized else None
    if size is not None and not limits.get("min", size) <= size <= limits.get("max", size):
        wrong(f"It has to be from {limits.get('min')} to {limits.get('max')}.")
    if shape.type_name == "list":
        for i, item in enumerate(value):
            check(item, shape.member, f"{path}[{i}]")
    elif shape.type_name == "map":
        for key, item in value.items():
            check(item, shape.value, f"{path}.{key}")
    elif shape.type_name == "string":
        if shape.enum and value not in shape.enum:
            wrong(f"It has to be one of {', '.join(shape.enum)}.")
        if limits.get("pattern") and not re.search(limits["pattern"], value):
            wrong(f"{path.rpartition('.')[2]} must match pattern {limits['pattern']}")


def arn(region, kind, name, version=None):
    slug = re.sub(r"[^a-z0-9-_]", "-", name.lower())
    return f"arn:aws:imagebuilder:{region}:{api.ACCOUNT}:{kind}/{slug}" + (f"/{version}" if version else "")


def _add(region, kind, identity, p, **more):
    _objects[identity] = {**p, **more, "arn": identity, "kind": kind, "region": region,
                          "dateCreated": datetime.datetime.now(datetime.timezone.utc).isoformat()}
    return _objects[identity]


def _find(identity, kind):
    found = _objects.get(identity)
    if found is None or found["kind"] != kind:
        raise Refused("ResourceNotFoundException", f"The resource '{identity}' does not exist.", 404)
    return found


def _needs(p, member, kind):
    if member in p and p[member] not in _objects:
        raise Refused("InvalidParameterValueException",
                      f"The value supplied for parameter '{member}' is not valid. The {kind} {p[member]} does not "
                      "exist.")


def _delete(identity, kind):
    _find(identity, kind)
    used = [o["arn"] for o in _objects.values() if o["kind"] != "image"
            and f'"{identity}"' in json.dumps({k: v for k, v in o.items() if k != "arn"})]
    if used:
        raise Refused("ResourceDependencyException",
                      f"Resource dependency error: The resource ARN '{identity}' has other resources depended on it: "
                      f"[{', '.join(used)}]")
    del _objects[identity]


# Components. Image Builder increments the build version of a component with the same name and version: API reference,
# CreateComponent, and the release of 2025-11-20.


def create_component(region, p):
    if ("data" in p) == ("uri" in p):
        raise Refused("InvalidParameterCombinationException", "Either data or uri must be specified.")
    document(p.get("data", ""))
    version = arn(region, "component", p["name"], p["semanticVersion"])
    build = 1 + max((int(a.rpartition("/")[2]) for a in _objects if a.startswith(version + "/")), default=0)
    return {"componentBuildVersionArn": _add(region, "component", f"{version}/{build}", p)["arn"]}


def document(text):
    """The little that the service checks of a document before it runs it."""
    try:
        parsed = yaml.safe_load(text)
        phases = [phase["name"] for phase in parsed["phases"]]
        wrong = str(parsed["schemaVersion"]) != "1.0" or not phases or len(phases) != len(set(phases)) or not all(
            step["name"] and step["action"] for phase in parsed["phases"] for step in phase["steps"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise Refused("InvalidRequestException", f"The component document is not valid: {error}") from None
    if wrong:
        raise Refused("InvalidRequestException", "The component document is not valid")
    return parsed


def get_component(region, p):
    found = _find(p["componentBuildVersionArn"], "component")
    phases = [phase["name"] for phase in document(found["data"])["phases"]]
    return {"component": {
        "arn": found["arn"], "name": found["name"], "version": found["semanticVersion"], "platform": found["platform"],
        "type": "TEST" if phases == ["test"] else "BUILD", "data": found["data"], "tags": found.get("tags", {})}}


# Recipes. One x in the version is counted up: user guide, "Create a new version of an image recipe".


def create_image_recipe(region, p):
    for item in p.get("components", []):
        component = _find(item["componentArn"], "component")
        known = {name for d in document(component["data"]).get("parameters", []) for name in d}
        given = {q["name"] for q in item.get("parameters", [])}
        if known != given:
            raise Refused("InvalidRequestException",
                          f"Parameters of {component['name']}: {sorted(known ^ given)} do not match its document.")
    _parent(region, p["parentImage"])
    version = p["semanticVersion"]
    if version.count("x") > 1:
        raise Refused("InvalidVersionNumberException", f"The version {version} may have one wildcard.")
    if "x" in version:
        prefix, _, suffix = version.partition("x")
        base = arn(region, "image-recipe", p["name"])
        pattern = re.compile(re.escape(f"{base}/{prefix}") + "([0-9]+)" + re.escape(suffix))
        last = max((int(m[1]) for a in _objects if (m := pattern.fullmatch(a))), default=-1)
        version = f"{prefix}{last + 1}{suffix}"
    identity = arn(region, "image-recipe", p["name"], version)
    if identity in _objects:
        raise Refused("ResourceAlreadyExistsException",
                      f"The following resource 'ImageRecipe' already exists: '{identity}'.", 409)
    return {"imageRecipeArn": _add(region, "image-recipe", identity, p, version=version)["arn"]}


def _parent(region, parent):
    """The AMI of a recipe's parentImage, looked up anew each time."""
    if parent.startswith("ssm:"):
        try:
            parent = api.client("ssm", region).get_parameter(Name=parent.removeprefix("ssm:"))["Parameter"]["Value"]
        except ClientError:
            raise Refused("InvalidParameterValueException",
                          "The value supplied for parameter 'parentImage' is not valid. "
                          f"{parent} does not exist.") from None
    try:
        return api.client("ec2", region).describe_images(ImageIds=[parent])["Images"][0]
    except (ClientError, IndexError):
        raise Refused("InvalidParameterValueException",
                      "The value supplied for parameter 'parentImage' is not valid. "
                      f"{parent} does not exist.") from None


def get_image_recipe(region, p):
    found = _find(p["imageRecipeArn"], "image-recipe")
    return {"imageRecipe": {k: found[k]
                            for k in ("arn", "name", "version", "parentImage", "components", "blockDeviceMappings")
                            if k in found}}


# What is changed in place.


def _create(kind, member, checks):
    def create(region, p):
        checks(region, p)
        identity = arn(region, kind, p["name"])
        if identity in _objects:
            raise Refused("ResourceAlreadyExistsException", f"The following resource already exists: '{identity}'.",
                          409)
        return {member: _add(region, kind, identity, p)["arn"]}

    return create


def _update(kind, member, checks):
    def update(region, p):
        found = _find(p[member], kind)
        checks(region, p)
        _add(region, kind, p[member], {k: v for k, v in p.items() if k != member}, name=found["name"],
             tags=found.get("tags", {}))
        return {member: p[member]}

    return update


def _infrastructure(region, p):
    if p["instanceProfileName"] not in {i.name for i in iam_backends[api.ACCOUNT]["aws"].instance_profiles.values()}:
        raise Refused("InvalidParameterValueException",
                      "The value supplied for parameter 'instanceProfileName' is not valid. The provided instance "
                      "profile does not exist. Please specify a different instance profile and try again.")
    if ("subnetId" in p) != bool(p.get("securityGroupIds")):
        raise Refused("InvalidParameterCombinationException", "A subnet needs security groups, and they need it.")


def _distribution(region, p):
    regions = [d["region"] for d in p["distributions"]]
    if len(regions) != len(set(regions)):
        raise Refused("InvalidParameterValueException",
                      "The value supplied for parameter 'distributions' is not valid. A region occurs twice.")
    for d in p["distributions"]:
        if "{{ imagebuilder:buildDate }}" not in d.get("amiDistributionConfiguration",
                                                       {}).get("name", "{{ imagebuilder:buildDate }}"):
            raise Refused("InvalidParameterValueException",
                          "The name of the AMI has to have {{ imagebuilder:buildDate }} in it.")


def _pipeline(region, p):
    _needs(p, "imageRecipeArn", "image recipe")
    _needs(p, "infrastructureConfigurationArn", "infrastructure configuration")
    _needs(p, "distributionConfigurationArn", "distribution configuration")
    parameters = [d for d in _objects.get(p.get("distributionConfigurationArn"), {}).get("distributions", [])
                  if d.get("ssmParameterConfigurations")]
    if parameters and "executionRole" not in p:
        raise Refused("InvalidParameterCombinationException",
                      "An execution role is required for SSM parameters of a distribution.")


def _policy(region, p):
    if len(p["resourceSelection"]) != 1:
        raise Refused("InvalidParameterCombinationException", "Either recipes or tagMap must be specified.")


def get_image_pipeline(region, p):
    return {"imagePipeline": {k: v for k, v in _find(p["imagePipelineArn"], "image-pipeline").items()
                              if k not in ("kind", "region")}}


# Images.


def start_image_pipeline_execution(region, p):
    pipeline = _find(p["imagePipelineArn"], "image-pipeline")
    recipe = _find(pipeline["imageRecipeArn"], "image-recipe")
    version = arn(region, "image", recipe["name"], recipe["version"])
    build = 1 + sum(a.startswith(version + "/") for a in _objects)
    parent = ec2_backends[api.ACCOUNT][region].amis[_parent(region, recipe["parentImage"])["ImageId"]]
    amis = []
    for d in _find(pipeline["distributionConfigurationArn"], "distribution-configuration")["distributions"]:
        ami = d.get("amiDistributionConfiguration", {})
        date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H-%M-%S.%fZ")
        made = add_image(d["region"], ami["name"].replace("{{ imagebuilder:buildDate }}", date),
                         ami.get("description"), parent.boot_mode, parent.root_device_name)
        made.tpm_support, made.uefi_data, made.imds_support = parent.tpm_support, parent.uefi_data, parent.imds_support
        _devices(made, recipe)
        image = made.id
        own = {"CreatedBy": "EC2 Image Builder", "Ec2ImageBuilderArn": f"{version}/{build}"}
        made.ebs_snapshot.add_tags(own)  # EC2ImageBuilderLifecycleExecutionPolicy deletes snapshots by that tag
        made.add_tags({**own, **ami.get("amiTags", {})})
        amis.append({"region": d["region"], "image": image, "name": made.name, "accountId": api.ACCOUNT})
        for parameter in d.get("ssmParameterConfigurations", []):
            api.client("ssm", d["region"]).put_parameter(Name=parameter["parameterName"], Value=image, Type="String",
                                                         Overwrite=True,
                                                         DataType=parameter.get("dataType", "text"))
    _add(region, "image", f"{version}/{build}",
         {"name": recipe["name"], "version": recipe["version"], "state": {"status": "AVAILABLE"},
          "outputResources": {"amis": amis}, "sourcePipelineArn": pipeline["arn"]})
    events.emit("aws.imagebuilder", "EC2 Image Builder Image State Change",
                {"previous-state": {"status": "DISTRIBUTING"}, "state": {"status": "AVAILABLE"}},
                [f"{version}/{build}"], region)
    return {"imageBuildVersionArn": f"{version}/{build}"}


def _devices(made, recipe):
    """The AMI's root device as the recipe has it, of the one snapshot that moto gives an AMI."""
    for device in recipe.get("blockDeviceMappings", []):
        ebs = device.get("ebs", {})
        made.root_device_name, made.ebs_snapshot.encrypted = device["deviceName"], ebs.get("encrypted", False)
        made.mappings = [{"DeviceName": device["deviceName"], "Ebs": {
            "SnapshotId": made.ebs_snapshot.id, "Encrypted": ebs.get("encrypted", False),
            "VolumeSize": ebs.get("volumeSize", 30), "VolumeType": ebs.get("volumeType", "gp3"),
            "DeleteOnTermination": ebs.get("deleteOnTermination", True)}}]


def get_image(region, p):
    return {"image": {k: v for k, v in _find(p["imageBuildVersionArn"], "image").items()
                      if k not in ("kind", "region")}}


def list_image_pipeline_images(region, p):
    _find(p["imagePipelineArn"], "image-pipeline")
    return {"imageSummaryList": [
        {k: o[k] for k in ("arn", "name", "version", "state", "outputResources", "dateCreated")}
        for o in _objects.values() if o["kind"] == "image" and o["sourcePipelineArn"] == p["imagePipelineArn"]]}


def _kinds():
    table = {f.__name__: f for f in (create_component, get_component, create_image_recipe, get_image_recipe,
                                     get_image_pipeline,
                                     start_image_pipeline_execution, get_image, list_image_pipeline_images)}
    for kind, checks in (("infrastructure-configuration", _infrastructure),
                         ("distribution-configuration", _distribution),
                         ("image-pipeline", _pipeline), ("lifecycle-policy", _policy)):
        name = kind.replace("-", "_")
        member = re.sub(r"-(.)", lambda m: m[1].upper(), kind) + "Arn"
        table[f"create_{name}"], table[f"update_{name}"] = _create(kind, member, checks), _update(kind, member, checks)
    for kind, member in (("component", "componentBuildVersionArn"), ("image-recipe", "imageRecipeArn"),
                         ("infrastructure-configuration", "infrastructureConfigurationArn"),
                         ("distribution-configuration", "distributionConfigurationArn"),
                         ("image-pipeline", "imagePipelineArn"),
                         ("lifecycle-policy", "lifecyclePolicyArn")):
        def delete(region, p, kind=kind, member=member):
            _delete(p[member], kind)
            return {member: p[member]}

        table[f"delete_{kind.replace('-', '_')}"] = delete
    return table


_operations = _kinds()


def _answer(request, region):
    operation = _routes().get((request.method, request.path))
    snake = re.sub(r"(?<!^)(?=[A-Z])", "_", operation.name).lower() if operation else ""
    if snake not in _operations:
        raise Refused("InvalidAction",
                      f"{operation.name if operation else request.path} of Image Builder is not emulated", 501)
    p = dict(request.args) | json.loads(request.get_data() or b"{}")
    p.pop("clientToken", None)
    if operation.input_shape:
        check(p, _Given(operation.input_shape))
    with _lock:
        return _operations[snake](region, p)


class _Given:
    """A request's shape without the token, which the client makes up."""

    type_name = "structure"

    def __init__(self, shape):
        self.members, self.metadata = shape.members, shape.metadata
        self.required_members = [n for n in shape.required_members if n != "clientToken"]


class Application:
    """A WSGI application: Image Builder itself, and moto for all else."""

    def __init__(self, rest: DomainDispatcherApplication):
        self.rest = rest

    def __call__(self, environ, start_response):
        scope = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].split(",")[0].split("/")
        if len(scope) < 4 or scope[3] != "imagebuilder":
            return self.rest(environ, start_response)
        try:
            answer = Response(json.dumps({"requestId": str(uuid.uuid4()), **_answer(Request(environ), scope[2])}),
                              content_type="application/json")
        except Refused as error:
            answer = Response(json.dumps({"message": str(error)}), error.status, {"x-amzn-ErrorType": error.code},
                              content_type="application/json")
        return answer(environ, start_response)


api.application = Application(api.application)
