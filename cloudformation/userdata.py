#!/usr/bin/env python3
"""Prints the user data of cluster.yaml as CloudFormation would hand it to a node.

  userdata.py [NAME=VALUE...]           all of it, for these parameters
  userdata.py --longest                 its size at the longest values that the parameters permit; fails above 12 KiB

It needs PyYAML, as cfn-lint does.

Part by part, since the user data and the template have no room for comments:

- The first document holds options of bootstrap, for its environment: an AMI with an older bootstrap, which does not
  know one, ignores it there.
- The parameters' patterns keep values inside their quotes, and ==sevagent== out of the documents that end with it.
- A node without a route for IPv4 asks the metadata service and AWS by the names that have IPv6 addresses; bootstrap
  does so, too, and makes the agent's units do it.
- The metadata service is never asked through a proxy, whatever an AMI has set.
- signed() sends a request as the nodes' role; curl reads the role's keys from standard input, where no list of
  processes shows them.
- fail() signals what fails before bootstrap, which signals all else. A signal has no text but its ID, at most 64
  characters, so that ID is the end of the instance's ID and the last line of the failed step. When the signal comes,
  NodesReady may not be waiting yet; in a rolling update it no longer is, and the group waits instead. With an exit
  status of at least 126, bootstrap cannot have signaled anything.
- The package needs nothing that is not on the AMI, so no repository is asked: a private subnet has none. What else
  keeps the package manager from it, such as another one that runs, passes; it is tried for some minutes.
- Each line of EcsConfig is an argument of bootstrap, as it stands.
- UserDataExtra runs when all else has ended, however it has. It is a file of its own, beside this script, where
  cloud-init may execute files. There is no MIME message around the two: its encoding would take a third more room.

The output is in /var/log/cloud-init-output.log.
"""
import base64
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
        return re.sub(r"\$\{(!?)([^}]+)\}",
                      lambda m: "${" + m[2] + "}" if m[1] else own[m[2]] if m[2] in own else ref(m[2]), text)

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
    names = ("UserDataExtra", "EcsConfig", "PackageUrl", "EnclaveEndpoints", "MtlsCertificateSecretsArns",
             "MtlsCertificatePath", "MtlsConsumers")
    return {name: "x" * parameters[name]["MaxLength"] for name in names} | {
        "ClusterName": "c" * 100,
        "PackageSha256": "0" * 64,
        "AttestationMode": "enforce",
        "MtlsOwner": "2147483647:2147483647",
        "EnableEnclaveMtls": "true",
        "AWS::Region": "ap-southeast-2",
        "AWS::URLSuffix": "amazonaws.com.cn",
        "AWS::StackId": "arn:aws-us-gov:cloudformation:us-gov-west-1:123456789012:stack/" + "s" * 128
        + "/1d4aa1e0-0000-11ee-be56-0242ac120002",
    }


def main(args):
    if args == ["--longest"]:
        size = len(user_data(longest()).encode())
        print(f"{size} bytes of user data at the longest values, limit {LIMIT}")
        return size > LIMIT
    sys.stdout.write(user_data(dict(a.split("=", 1) for a in args)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
