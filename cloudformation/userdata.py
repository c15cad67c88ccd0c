#!/usr/bin/env python3
"""Prints the user data of cluster.yaml as CloudFormation would hand it to a node.

  userdata.py [NAME=VALUE...]           all of it, for these parameters
  userdata.py --script [NAME=VALUE...]  its first part alone, for shellcheck and tests
  userdata.py --longest                 its size at the longest values that the parameters permit; fails above 12 KiB

It needs PyYAML, as cfn-lint does.
"""
import base64
import email
import pathlib
import re
import sys

import yaml

LIMIT = 12 * 1024  # EC2's is 16 KiB


class Loader(yaml.SafeLoader):
    pass


def short_form(loader, name, node):
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    return {name if name in ("Ref", "Condition") else "Fn::" + name: value}


Loader.add_multi_constructor("!", short_form)
template = yaml.load((pathlib.Path(__file__).parent / "cluster.yaml").read_text(), Loader)
parameters = template["Parameters"]


def evaluate(e, values):
    """The value of the functions that lead to the user data."""
    def ev(x):
        return evaluate(x, values)

    def sub(a):
        text, own = (a, {}) if isinstance(a, str) else (a[0], {k: ev(v) for k, v in a[1].items()})
        return re.sub(r"\$\{(!?)([^}]+)\}", lambda m: "${" + m[2] + "}" if m[1] else own[m[2]] if m[2] in own else ref(m[2]), text)

    def ref(name):
        return values["ClusterName" if name == "Cluster" else name]

    functions = {
        "Ref": ref,
        "Condition": lambda a: ev(template["Conditions"][a]),
        "Fn::Equals": lambda a: str(ev(a[0])) == str(ev(a[1])),
        "Fn::Not": lambda a: not ev(a[0]),
        "Fn::And": lambda a: all(map(ev, a)),
        "Fn::Or": lambda a: any(map(ev, a)),
        "Fn::If": lambda a: ev(a[1] if ev({"Condition": a[0]}) else a[2]),
        "Fn::Select": lambda a: ev(a[1])[int(a[0])],
        "Fn::Split": lambda a: ev(a[1]).split(a[0]),
        "Fn::Join": lambda a: a[0].join(map(ev, a[1])),
        "Fn::Base64": lambda a: base64.b64encode(ev(a).encode()).decode(),
        "Fn::Sub": sub,
    }
    if isinstance(e, dict):
        (name, argument), = e.items()
        return functions[name](argument)
    return e


def user_data(values):
    all_values = {name: str(p.get("Default", "")) for name, p in parameters.items()} | {
        "ClusterName": "demo",
        "AWS::Region": "us-east-2",
        "AWS::URLSuffix": "amazonaws.com",
        "AWS::StackId": "arn:aws:cloudformation:us-east-2:123456789012:stack/demo/1d4aa1e0-0000-11ee-be56-0242ac120002",
    } | values
    encoded = template["Resources"]["LaunchTemplate"]["Properties"]["LaunchTemplateData"]["UserData"]
    return base64.b64decode(evaluate(encoded, all_values)).decode()


def longest():
    names = ("UserDataExtra", "PackageUrl", "EnclaveEndpoints", "MtlsCertificateSecretsArns", "MtlsCertificatePath")
    return {name: "x" * parameters[name]["MaxLength"] for name in names} | {
        "ClusterName": "c" * 100,
        "PackageSha256": "0" * 64,
        "AttestationMode": "enforce",
        "EnableEnclaveMtls": "true",
        "AWS::Region": "ap-southeast-2",
        "AWS::URLSuffix": "amazonaws.com.cn",
        "AWS::StackId": "arn:aws-us-gov:cloudformation:us-gov-west-1:123456789012:stack/" + "s" * 128 + "/1d4aa1e0-0000-11ee-be56-0242ac120002",
    }


def main(args):
    if args == ["--longest"]:
        size = len(user_data(longest()).encode())
        print(f"{size} bytes of user data at the longest values, limit {LIMIT}")
        return size > LIMIT
    script = args[:1] == ["--script"]
    text = user_data(dict(a.split("=", 1) for a in args[script:]))
    if script:
        first = next(p for p in email.message_from_string(text).walk() if not p.is_multipart())
        text = first.get_payload(decode=True).decode()
    sys.stdout.write(text)
    return 0


sys.exit(main(sys.argv[1:]))
