#!/usr/bin/env python3
"""Has parliament look at every IAM policy of the given templates, with sample values for what functions give.

It fails on any finding: an action or condition key that does not exist, a resource that does not fit its actions, a
malformed ARN, a right that leads to others.
"""
import json
import pathlib
import re
import sys

import yaml
from parliament import analyze_policy_string

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "cloudformation"))
from userdata import Loader  # noqa: E402

# False alarms, and what is meant: (finding, logical ID of the resource).
MEANT = {
    # SendCommand is authorized on the document and on each node. The nodes have a condition, so a statement of their
    # own.
    ("RESOURCE_MISMATCH", "EventsRole"),
    # So is RegisterImage, on the AMI and on its snapshot, which have different tags.
    ("RESOURCE_MISMATCH", "RegisterRole"),
    # What AmazonSSMManagedInstanceCore allows: Image Builder's documents have names of AWS's choosing.
    ("RESOURCE_STAR", "BuilderRole"),
    # Public parameters have an ARN without an account; and IAM compares the boundary's ARN as a string.
    ("RESOURCE_MISMATCH", "Deployer"),
    ("MISMATCHED_TYPE_BUT_USABLE", "Deployer"),
}
# These name actions that deserve a look, whatever their resources and conditions are.
REMARKS = {"CREDENTIALS_EXPOSURE", "PERMISSIONS_MANAGEMENT_ACTIONS"}
PSEUDO = {"AWS::Partition": "aws", "AWS::Region": "us-east-2", "AWS::AccountId": "123456789012",
          "AWS::URLSuffix": "amazonaws.com", "AWS::StackName": "demo",
          "AWS::StackId": "arn:aws:cloudformation:us-east-2:123456789012:stack/demo/1d4aa1e0"}
# Of the resources that policies name; those of others are an error here.
ARNS = {"AWS::ECS::Cluster": "arn:aws:ecs:us-east-2:123456789012:cluster/demo",
        "AWS::IAM::Role": "arn:aws:iam::123456789012:role/demo",
        "AWS::Logs::LogGroup": "arn:aws:logs:us-east-2:123456789012:log-group:demo:*"}
# Of parameters without a default that is one.
SAMPLES = {"MtlsCertificateSecretsArns": "arn:aws:secretsmanager:us-east-2:123456789012:secret:demo-AbCdEf",
           "MtlsPrivateCaArn": "arn:aws:acm-pca:us-east-2:123456789012:certificate-authority/"
           "11111111-2222-3333-4444-555555555555",
           "PrivateCaArns": "arn:aws:acm-pca:us-east-2:123456789012:certificate-authority/"
           "11111111-2222-3333-4444-555555555555",
           "MtlsSecretArn": "arn:aws:secretsmanager:us-east-2:123456789012:secret:demo-AbCdEf",
           "ImageRepositoryArn": "arn:aws:ecr:us-east-2:123456789012:repository/demo", "AmiParameterName": "/demo",
           "RootVolumeKmsKeyArn": "arn:aws:kms:us-east-2:123456789012:key/demo"}


class Sample:
    """Evaluates functions: both branches of an If, and for a parameter a value as it would have."""

    def __init__(self, template):
        self.parameters, self.resources = template.get("Parameters", {}), template["Resources"]

    def ref(self, name):
        if name in PSEUDO:
            return PSEUDO[name]
        if name == "AWS::NoValue":
            return None
        if self.resources.get(name, {}).get("Type") == "AWS::IAM::ManagedPolicy":
            return "arn:aws:iam::123456789012:policy/demo"
        return SAMPLES.get(name) or str(self.parameters.get(name, {}).get("Default", "")) or "demo"

    def sub(self, argument):
        text, own = (argument, {}) if isinstance(argument, str) else argument

        def value(found):
            name = found[1]
            if name in own:
                return str(self.value(own[name]))
            return str(self.attribute(name) if "." in name else self.ref(name))

        return re.sub(r"\$\{([^}!]+)\}", value, text)

    def attribute(self, name):
        return ARNS[self.resources[(name if isinstance(name, list) else name.split("."))[0]]["Type"]]

    def value(self, e):
        if isinstance(e, list):
            flat = []
            for item in e:
                got = self.value(item)
                flat += got if isinstance(item, dict) and "Fn::If" in item and isinstance(got, list) else [got]
            return [v for v in flat if v is not None]
        if not isinstance(e, dict):
            return e
        if len(e) == 1:
            (name, a), = e.items()
            if name == "Ref":
                return self.ref(a)
            if name == "Fn::Sub":
                return self.sub(a)
            if name == "Fn::GetAtt":
                return self.attribute(a)
            if name == "Fn::If":
                return [v for v in map(self.value, a[1:]) if v is not None]
            if name == "Fn::Split":
                return self.value(a[1]).split(a[0])
            if name == "Fn::Select":
                parts = self.value(a[1])
                return parts[int(a[0])] if int(a[0]) < len(parts) else "demo/key"
            if name == "Fn::Join":
                return a[0].join(map(str, self.value(a[1])))
        return {k: self.value(v) for k, v in e.items()}


def policies(value, sample):
    """Every policy document in value; those that say who may assume a role have no resources to look at."""
    if isinstance(value, list):
        for item in value:
            yield from policies(item, sample)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "PolicyDocument":
                yield sample.value(item)
            else:
                yield from policies(item, sample)


def main(paths):
    failed, count = False, 0
    for path in paths:
        template = yaml.load(pathlib.Path(path).read_text(), Loader)
        sample = Sample(template)
        for name, resource in template["Resources"].items():
            for policy in policies(resource.get("Properties", {}), sample):
                count += 1
                for finding in analyze_policy_string(json.dumps(policy), include_community_auditors=True).findings:
                    if finding.issue not in REMARKS and (finding.issue, name) not in MEANT:
                        failed = True
                        print(f"{path}: {name}: {finding.issue}: {finding.detail} {finding.location}")
    print(f"{count} policies")
    return failed


sys.exit(main(sys.argv[1:]))
