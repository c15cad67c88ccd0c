"""CloudFormation templates: the syntax, parameters, rules, conditions and intrinsic functions.

Wordings are those of AWS where they are known from its documentation or from published logs.
"""

import base64
import re

import yaml
from botocore.exceptions import ClientError

from . import api
from .api import AWSError, text

NO_VALUE = object()  # what AWS::NoValue is, until it is taken out of the object or list around it
UNKNOWN = "{{resource not created yet}}"


def invalid(message):
    return AWSError("ValidationError", message)


class _Loader(yaml.SafeLoader):
    """YAML as CloudFormation reads it: the short forms of functions, and a date is a string."""


def _tag(loader, suffix, node):
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    if suffix in ("Ref", "Condition"):
        return {suffix: value}
    if suffix == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _tag)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, expression) for tag, expression in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

SECTIONS = {"AWSTemplateFormatVersion", "Description", "Metadata", "Parameters", "Rules", "Mappings", "Conditions",
            "Resources", "Outputs", "Transform"}
LIMIT = 51200  # bytes of a template body; AWS CloudFormation quotas


def parse(body):
    """The template as an object, refused where AWS refuses it without looking at parameters."""
    if len(body.encode()) > LIMIT:
        raise AWSError("ValidationError",
                       "1 validation error detected: Value at 'templateBody' failed to satisfy constraint: "
                       f"Member must have length less than or equal to {LIMIT}")
    try:
        template = yaml.load(body, Loader=_Loader)  # noqa: S506, a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise invalid(f"Template format error: YAML not well-formed.{where}") from None
    if not isinstance(template, dict):
        raise invalid("Template format error: unsupported structure.")
    if unknown := set(template) - SECTIONS:
        raise invalid(f"Invalid template property or properties {sorted(unknown)}".replace("'", ""))
    if not template.get("Resources"):
        raise invalid("Template format error: At least one Resources member must be defined.")
    if "Transform" in template:
        raise invalid("Transforms are not emulated")
    _check_references(template)
    return template


def _check_references(template):
    names = set(template.get("Parameters", {})) | set(template["Resources"])
    names |= {f"AWS::{name}" for name in PSEUDO}
    for block in ("Resources", "Outputs"):
        missing = {n for n in references(template.get(block) or {}) if n not in names}
        if missing:
            raise invalid(f"Template format error: Unresolved resource dependencies [{', '.join(sorted(missing))}] "
                          f"in the {block} block of the template")
    conditions = template.get("Conditions", {})
    for name in _condition_names(template):
        if name not in conditions:
            raise invalid(f"Template format error: Unresolved condition dependency {name} in the template")


def _condition_names(template):
    for block in (template["Resources"], template.get("Outputs") or {}):
        for value in block.values():
            if "Condition" in value:
                yield value["Condition"]

    def nested(value):
        if isinstance(value, dict):
            for key, item in value.items():
                if key == "Fn::If":
                    yield item[0]
                yield from nested(item)
        elif isinstance(value, list):
            for item in value:
                yield from nested(item)

    yield from nested(template["Resources"])
    yield from nested(template.get("Outputs") or {})


SUB = re.compile(r"\$\{(!?)([^}]+)\}")
PSEUDO = ("AccountId", "NoValue", "NotificationARNs", "Partition", "Region", "StackId", "StackName", "URLSuffix")


def references(value):
    """Names that value refers to through Ref, Fn::GetAtt, Fn::Sub and DependsOn."""
    if isinstance(value, list):
        for item in value:
            yield from references(item)
        return
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key == "Ref" and len(value) == 1:
            yield item
        elif key == "Fn::GetAtt":
            yield item[0] if isinstance(item, list) else item.split(".")[0]
        elif key == "Fn::Sub":
            template, names = (item, {}) if isinstance(item, str) else item
            yield from references(names)
            yield from (name.split(".")[0] for escaped, name in SUB.findall(template) if not escaped
                        and name not in names)
        elif key == "DependsOn" and not isinstance(item, dict):
            yield from [item] if isinstance(item, str) else item
        else:
            yield from references(item)


def order(resources, last=lambda name: False):
    """Logical IDs so that each comes after what it refers to; `last` picks those that wait for the others."""
    needs = {name: {n for n in references(body) if n in resources} for name, body in resources.items()}
    done = []
    while len(done) < len(resources):
        ready = [n for n in resources if n not in done and needs[n] <= set(done)]
        if not ready:
            rest = ", ".join(n for n in resources if n not in done)
            raise invalid(f"Circular dependency between resources: [{rest}]")
        done.append(min(ready, key=last))
    return done


class Scope:
    """What the functions of a template see: parameters, conditions, mappings and the resources made so far."""

    def __init__(self, template, given, *, stack_id, stack_name, region, resources=None):
        self.template = template
        self.resources = resources if resources is not None else {}
        self.region = region
        self.pseudo = {
            "AWS::AccountId": api.ACCOUNT, "AWS::NoValue": NO_VALUE, "AWS::NotificationARNs": [],
            "AWS::Partition": "aws",
            "AWS::Region": region, "AWS::StackId": stack_id, "AWS::StackName": stack_name,
            "AWS::URLSuffix": "amazonaws.com",
        }
        self.raw = raw_parameters(template, given)
        self.resolved = {}  # SSM parameters as they were found
        self.parameters = {name: self._parameter(name, spec) for name, spec in template.get("Parameters", {}).items()}
        self._conditions = {}
        self._check_rules()
        for name in template.get("Conditions", {}):
            self.condition(name)

    def _parameter(self, name, spec):
        kind, raw = spec["Type"], self.raw[name]
        check_parameter(name, spec, raw)
        if ssm := re.fullmatch(r"AWS::SSM::Parameter::Value<(.+)>", kind):
            value = self.resolved[name] = self.ssm(raw)
            return value.split(",") if ssm[1].startswith("List<") else value
        values = _values(kind, raw)
        _check_exists(name, kind, values, self.region)
        return values if _is_list(kind) else raw

    def ssm(self, name):
        found = api.client("ssm", self.region).get_parameters(Names=[name])["Parameters"]
        if not found:
            raise invalid(f"Unable to fetch parameters [{name}] from parameter store for this account.")
        return found[0]["Value"]

    def _check_rules(self):
        for name, rule in (self.template.get("Rules") or {}).items():
            if "RuleCondition" in rule and not self.rule(rule["RuleCondition"]):
                continue
            for assertion in rule["Assertions"]:
                if not self.rule(assertion["Assert"]):
                    raise invalid(f"Template validation error: Rule {name}: "
                                  f"{assertion.get('AssertDescription', 'assertion is false')}")

    def rule(self, expression):
        """A rule-specific intrinsic function; they see parameters, and attributes of what those name, only."""
        if not isinstance(expression, dict):
            return expression
        (function, arguments), = expression.items()
        if function == "Ref":
            return self.ref(arguments)
        if function == "Fn::Contains":
            return text(self.rule(arguments[1])) in [text(self.rule(a)) for a in _as_list(self.rule(arguments[0]))]
        if function == "Fn::EachMemberIn":
            return set(self.rule(arguments[0])) <= set(self.rule(arguments[1]))
        if function == "Fn::EachMemberEquals":
            return all(text(a) == text(self.rule(arguments[1])) for a in self.rule(arguments[0]))
        if function == "Fn::RefAll":
            return [value for _, values in self._of_type(arguments) for value in values]
        if function == "Fn::ValueOf":
            return self._value_of(*arguments)
        if function == "Fn::ValueOfAll":
            return [v for name, _ in self._of_type(arguments[0]) for v in _as_list(self._value_of(name, arguments[1]))]
        if function in LOGIC:
            return LOGIC[function](self.rule, arguments)
        raise invalid(f"Template error: {function} is not supported in Rules")

    def _of_type(self, kind):
        """Parameters whose values are of an AWS-specific type, with those values."""
        return [(name, _as_list(self.parameters[name])) for name, spec in self.template["Parameters"].items()
                if spec["Type"] in (kind, f"List<{kind}>")]

    def _value_of(self, name, attribute):
        """An attribute of what a parameter names, a list if the parameter is one. Template reference, "Rule functions",
        "Supported attributes"."""
        kind = re.sub(r"^List<(.+)>$", r"\1", self.template["Parameters"][name]["Type"])
        found = [_attribute(kind, value, attribute, self.region) for value in _as_list(self.parameters[name])]
        return found if _is_list(self.template["Parameters"][name]["Type"]) else found[0]

    def condition(self, name):
        if name not in self._conditions:
            self._conditions[name] = self._logic(self.template["Conditions"][name])
        return self._conditions[name]

    def _logic(self, expression):
        if isinstance(expression, dict) and len(expression) == 1:
            (function, arguments), = expression.items()
            if function == "Condition":
                return self.condition(arguments)
            if function in LOGIC:
                return LOGIC[function](self._logic, arguments)
        return self.evaluate(expression)

    def ref(self, name):
        if name in self.pseudo:
            return self.pseudo[name]
        if name in self.parameters:
            return self.parameters[name]
        return self.resources[name].physical_id if self._made(name) else UNKNOWN

    def _made(self, name):
        body = self.template["Resources"].get(name, {})
        if "Condition" in body and not self.condition(body["Condition"]):
            raise invalid(f"Template format error: Unresolved resource dependencies [{name}] in the Resources block of "
                          "the template")
        return name in self.resources

    def attribute(self, name, attribute):
        if not self._made(name):
            return UNKNOWN
        try:
            return self.resources[name].attributes[attribute]
        except KeyError:
            raise invalid(f"Template error: resource {name} does not support attribute type {attribute} "
                          "in Fn::GetAtt") from None

    def evaluate(self, value):
        """value with its functions replaced by what they give."""
        if isinstance(value, list):
            return [v for v in map(self.evaluate, value) if v is not NO_VALUE]
        if isinstance(value, dict):
            if len(value) == 1:
                (name, arguments), = value.items()
                if name == "Ref":
                    return self.ref(arguments)
                if function := FUNCTIONS.get(name):
                    return function(self, arguments)
            evaluated = {k: self.evaluate(v) for k, v in value.items()}
            return {k: v for k, v in evaluated.items() if v is not NO_VALUE}
        if isinstance(value, str):
            return re.sub(r"\{\{resolve:ssm:([^}:]+)(?::\d+)?\}\}", lambda found: self.ssm(found[1]), value)
        return value

    def active(self, block):
        """The members of Resources or Outputs whose condition holds."""
        return {n: v for n, v in (self.template.get(block) or {}).items()
                if "Condition" not in v or self.condition(v["Condition"])}

    def _find_in_map(self, arguments):
        keys = [text(self.evaluate(a)) for a in arguments[:3]]
        try:
            return self.template["Mappings"][keys[0]][keys[1]][keys[2]]
        except KeyError:
            raise invalid(f"Template error: Unable to get mapping for {'::'.join(keys)}") from None

    def _sub(self, arguments):
        template, names = (arguments, {}) if isinstance(arguments, str) else arguments

        def value(found):
            escaped, name = found.groups()
            if escaped:
                return "${" + name + "}"
            name = name.strip()
            if name in names:
                return _joined(self.evaluate(names[name]))
            if "." in name:
                return _joined(self.attribute(*name.split(".", 1)))
            return _joined(self.ref(name))

        return self.evaluate(SUB.sub(value, template))

    def _select(self, arguments):
        index, values = int(self.evaluate(arguments[0])), _as_list(self.evaluate(arguments[1]))
        if not 0 <= index < len(values):
            raise invalid("Template error: Fn::Select cannot select nonexistent value at index " + str(index))
        return values[index]

    def _azs(self, arguments):
        region = self.evaluate(arguments) or self.region
        zones = api.client("ec2", region).describe_availability_zones()["AvailabilityZones"]
        return [zone["ZoneName"] for zone in zones]


def _joined(value):
    """A list in a string is what the template's author did not mean, and AWS refuses."""
    if isinstance(value, list):
        return ",".join(map(text, value))
    return text(value)


def _as_list(value):
    return value if isinstance(value, list) else [value]


def _equals(evaluate, arguments):
    left, right = (evaluate(a) for a in arguments)
    return left == right or text(left) == text(right)


LOGIC = {
    "Fn::Equals": _equals,
    "Fn::And": lambda evaluate, arguments: all([evaluate(a) for a in arguments]),
    "Fn::Or": lambda evaluate, arguments: any([evaluate(a) for a in arguments]),
    "Fn::Not": lambda evaluate, arguments: not evaluate(arguments[0]),
}

FUNCTIONS = {
    "Fn::Base64": lambda s, a: base64.b64encode(text(s.evaluate(a)).encode()).decode(),
    "Fn::FindInMap": Scope._find_in_map,
    "Fn::GetAtt": lambda s, a: s.attribute(*(a if isinstance(a, list) else a.split(".", 1))),
    "Fn::GetAZs": Scope._azs,
    "Fn::If": lambda s, a: s.evaluate(a[1] if s.condition(a[0]) else a[2]),
    "Fn::Join": lambda s, a: text(a[0]).join(_joined(v) for v in s.evaluate(a[1])),
    "Fn::Select": Scope._select,
    "Fn::Split": lambda s, a: text(s.evaluate(a[1])).split(a[0]),
    "Fn::Sub": Scope._sub,
}


def raw_parameters(template, given):
    """Parameters as text: what was given, else the default."""
    specs = template.get("Parameters", {})
    if unknown := sorted(set(given) - set(specs)):
        raise invalid(f"Parameters: [{', '.join(unknown)}] do not exist in the template")
    missing = [name for name, spec in specs.items() if name not in given and "Default" not in spec]
    if missing:
        raise invalid(f"Parameters: [{', '.join(missing)}] must have values")
    return {name: given[name] if name in given else text(spec["Default"]) for name, spec in specs.items()}


def _is_list(kind):
    return kind == "CommaDelimitedList" or kind.startswith("List<")


def _values(kind, raw):
    return [v.strip() for v in raw.split(",")] if _is_list(kind) else [raw]


VALUE_LIMIT = 4096  # bytes of a parameter value; AWS CloudFormation quotas


def check_parameter(name, spec, raw):
    """Refuses a value that its parameter's constraints do not allow."""
    if len(raw.encode()) > VALUE_LIMIT:
        raise invalid(f"Parameter '{name}' length is greater than {VALUE_LIMIT} bytes"
                      if "ConstraintDescription" not in spec
                      else f"Parameter {name} failed to satisfy constraint: {spec['ConstraintDescription']}")
    for value in _values(spec["Type"], raw):
        if (violated := _violated(spec, value)) is None:
            continue
        if "ConstraintDescription" in spec:
            raise invalid(f"Parameter {name} failed to satisfy constraint: {spec['ConstraintDescription']}")
        raise invalid(f"Parameter '{name}' {violated}")


def _violated(spec, value):
    kind = spec["Type"]
    if "AllowedValues" in spec and value not in map(text, spec["AllowedValues"]):
        return "must be one of AllowedValues"
    if "AllowedPattern" in spec and not re.fullmatch(spec["AllowedPattern"], value):
        return f"must match pattern {spec['AllowedPattern']}"
    if len(value) < int(spec.get("MinLength", 0)):
        return f"must contain at least {spec['MinLength']} characters"
    if "MaxLength" in spec and len(value) > int(spec["MaxLength"]):
        return f"must contain at most {spec['MaxLength']} characters"
    if kind in ("Number", "List<Number>"):
        try:
            number = float(value)
        except ValueError:
            return "must be a number"
        if "MinValue" in spec and number < float(spec["MinValue"]):
            return f"must be a number not less than {spec['MinValue']}"
        if "MaxValue" in spec and number > float(spec["MaxValue"]):
            return f"must be a number not greater than {spec['MaxValue']}"
    return None


# AWS-specific parameter types, with the call that knows whether a value exists.
_EXISTS = {
    "AWS::EC2::VPC::Id": ("describe_vpcs", "VpcIds"),
    "AWS::EC2::Subnet::Id": ("describe_subnets", "SubnetIds"),
    "AWS::EC2::SecurityGroup::Id": ("describe_security_groups", "GroupIds"),
    "AWS::EC2::KeyPair::KeyName": ("describe_key_pairs", "KeyNames"),
}


def _attribute(kind, value, attribute, region):
    if not (attribute in ATTRIBUTES.get(kind, ()) or kind in ATTRIBUTES and attribute.startswith("Tags.")):
        raise invalid(f"Template error: {kind} has no attribute {attribute} in Rules")
    method, argument = _EXISTS[kind]
    found, = getattr(api.client("ec2", region), method)(**{argument: [value]})[argument.removesuffix("Ids") + "s"]
    if attribute.startswith("Tags."):
        return next((t["Value"] for t in found.get("Tags", []) if t["Key"] == attribute.removeprefix("Tags.")), "")
    return found[attribute]


# What Fn::ValueOf finds besides Tags.KEY.
ATTRIBUTES = {
    "AWS::EC2::VPC::Id": (),  # AWS has DefaultNetworkAcl and DefaultSecurityGroup as well
    "AWS::EC2::Subnet::Id": ("AvailabilityZone", "VpcId"),
}


def _check_exists(name, kind, values, region):
    kind = re.sub(r"^List<(.+)>$", r"\1", kind)
    if kind not in _EXISTS:
        return
    method, argument = _EXISTS[kind]
    for value in values:
        try:
            getattr(api.client("ec2", region), method)(**{argument: [value]})
        except ClientError:
            raise invalid(f"Parameter validation failed: parameter value {value} for parameter name {name} does not "
                          "exist") from None


def seconds(duration):
    """An ISO 8601 duration such as PT15M."""
    found = re.fullmatch(r"PT(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?", duration)
    if not found:
        raise invalid(f"Invalid duration {duration}")
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + rest
