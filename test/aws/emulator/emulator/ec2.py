"""EC2: boot mode, NitroTPM, CPU options, launch templates that are obeyed whole, SNP by region, right pages."""

import base64

from moto.core.responses import ActionResult
from moto.ec2.exceptions import InvalidInstanceIdError
from moto.ec2.models import ec2_backends
from moto.ec2.models.amis import Ami, AmiBackend
from moto.ec2.models.elastic_network_interfaces import NetworkInterface
from moto.ec2.models.instance_types import InstanceType
from moto.ec2.models.instances import Instance, InstanceBackend, MetadataOptions
from moto.ec2.responses import EC2Response
from moto.ec2.utils import filter_reservations, parse_user_data, random_ami_id
from moto.iam.models import iam_backends

from .api import ACCOUNT, AWSError, extend, operation

# Where m6a, c6a and r6a offer AMD SEV-SNP: Amazon EC2 user guide, "AMD SEV-SNP", Requirements.
SNP_REGIONS = ("us-east-2", "eu-west-1")

# Canonical's images, for the public SSM parameters that moto lacks: parameter: (image, root device).
CANONICAL = {
    "/aws/service/canonical/ubuntu/server/22.04/stable/current/amd64/hvm/ebs-gp2/ami-id": "ami-0a22040000000000a",
    "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id": "ami-0b24040000000000b",
}


def backend(region):
    return ec2_backends[ACCOUNT][region]


# Network interfaces


@extend(NetworkInterface, "__init__")
def _interface(original, self, *args, **kwargs):
    original(self, *args, **kwargs)
    if not hasattr(self, "private_dns_name"):  # moto sets it in some VPCs only, and its ECS reads it always
        self.private_dns_name = f"ip-{(self.private_ip_address or '').replace('.', '-')}.ec2.internal"


# Images


@extend(Ami, "__init__")
def _ami(original, self, *args, **kwargs):
    original(self, *args, **kwargs)
    name = (self.name or "").lower()
    if "boot_mode" not in kwargs:  # without the parameter an image boots in the type's default mode, legacy BIOS on AMD
        self.boot_mode = "uefi-preferred" if "al2023-ami" in name or "ubuntu" in name else None
    self.tpm_support = self.uefi_data = self.imds_support = None
    self.ena_support = True
    self.mappings = [{"DeviceName": self.root_device_name, "Ebs": {
        "SnapshotId": self.ebs_snapshot.id, "VolumeSize": 15, "DeleteOnTermination": False,
        "VolumeType": "standard"}}]


Ami.block_device_mappings = property(lambda self: self.mappings)


@extend(AmiBackend)
def describe_images(original, self, *args, **kwargs):
    for parameter, ami_id in CANONICAL.items():
        if ami_id not in self.amis:
            version = parameter.split("/")[6]
            self.amis[ami_id] = Ami(
                self, ami_id, name=f"ubuntu/images/hvm-ssd/ubuntu-{version}-amd64-server", owner_id="099720109477",
                public=True,
                virtualization_type="hvm", architecture="x86_64", hypervisor="xen", root_device_type="ebs",
                root_device_name="/dev/sda1", boot_mode="uefi-preferred", region_name=self.region_name)
    return original(self, *args, **kwargs)


def add_image(region, name, description=None, boot_mode=None, root_device="/dev/sda1", **more):
    b = backend(region)
    ami = Ami(b, random_ami_id(), name=name, description=description, root_device_type="ebs",
              root_device_name=root_device,
              boot_mode=boot_mode, region_name=region, hypervisor="xen",
              **{"virtualization_type": "hvm", "architecture": "x86_64", **more})
    b.amis[ami.id] = ami
    return ami


@operation(EC2Response)
def register_image(request, p):
    """What is not given is not taken over from anywhere: EC2 API reference, RegisterImage."""
    b, name = backend(request.region), p["Name"]
    for member, known in (("BootMode", ("legacy-bios", "uefi", "uefi-preferred")), ("TpmSupport", ("v2.0",)),
                          ("ImdsSupport", ("v2.0",))):
        if p.get(member) not in (None, *known):
            raise AWSError("InvalidParameterValue", f"Value ({p[member]}) for parameter {member} is invalid.")
    if p.get("TpmSupport") and p.get("BootMode") != "uefi":  # user guide, "Enable a Linux AMI for NitroTPM"
        raise AWSError("InvalidParameterCombination", "TpmSupport needs the boot mode uefi")
    if any(a.name == name and a.owner_id == ACCOUNT for a in b.amis.values()):
        raise AWSError("InvalidAMIName.Duplicate", f"AMI name {name} is already in use by AMI")
    mappings = p.get("BlockDeviceMappings", [])
    for ebs in (m.get("Ebs", {}) for m in mappings):
        if "SnapshotId" in ebs and "Encrypted" in ebs:  # "you can't specify the encryption state of the volume"
            raise AWSError("InvalidParameterCombination", "The encryption state cannot be given with a snapshot")
        if "SnapshotId" in ebs and ebs["SnapshotId"] not in b.snapshots:
            raise AWSError("InvalidSnapshot.NotFound", f"The snapshot '{ebs['SnapshotId']}' does not exist.")
    ami = add_image(request.region, name, p.get("Description"), p.get("BootMode"),
                    p.get("RootDeviceName", "/dev/sda1"), virtualization_type=p.get("VirtualizationType", "hvm"),
                    architecture=p.get("Architecture", "x86_64"))
    ami.tpm_support, ami.uefi_data, ami.imds_support = p.get("TpmSupport"), p.get("UefiData"), p.get("ImdsSupport")
    ami.ena_support, ami.sriov = p.get("EnaSupport", False), p.get("SriovNetSupport")
    if mappings:
        ami.mappings = [_shown(b, m) for m in mappings]
    for specification in p.get("TagSpecifications", []):
        if specification["ResourceType"] == "image":
            ami.add_tags({t["Key"]: t["Value"] for t in specification["Tags"]})
    return {"ImageId": ami.id}


def _shown(b, mapping):
    """A block device as DescribeImages returns it: with the snapshot's encryption."""
    snapshot = b.snapshots.get(mapping.get("Ebs", {}).get("SnapshotId"))
    return {**mapping, "Ebs": {**mapping["Ebs"], "Encrypted": snapshot.encrypted}} if snapshot else mapping


@extend(EC2Response)
def describe_image_attribute(original, request):
    """moto has no values for these, and names the member wrongly. What is not set is empty."""
    p = request._get_params()
    member = {"bootMode": "boot_mode", "imdsSupport": "imds_support", "tpmSupport": "tpm_support",
              "uefiData": "uefi_data"}.get(p["Attribute"])
    if member is None:
        return original(request)
    value = getattr(backend(request.region).describe_images([p["ImageId"]])[0], member)
    return ActionResult({"ImageId": p["ImageId"], p["Attribute"][0].upper() + p["Attribute"][1:]:
                         {"Value": value} if value else {}})


# Instance types

InstanceType._filter_attributes["processor-info.supported-features"] = ["ProcessorInfo", "SupportedFeatures"]
InstanceType._filter_attributes["processor-info.manufacturer"] = ["ProcessorInfo", "Manufacturer"]


def supports_snp(region, instance_type):
    found = backend(region).describe_instance_types([instance_type])
    return bool(found) and "amd-sev-snp" in found[0]["ProcessorInfo"].get("SupportedFeatures", [])


class _WithoutSNP(InstanceType):
    def __init__(self, name):
        super().__init__(name)
        features = [f for f in self["ProcessorInfo"].get("SupportedFeatures", []) if f != "amd-sev-snp"]
        self["ProcessorInfo"] = {**self["ProcessorInfo"], "SupportedFeatures": features}


@extend(type(ec2_backends[ACCOUNT]["us-east-2"]), "describe_instance_types")
def _describe_instance_types(original, self, instance_types=None, filters=None):
    if self.region_name not in SNP_REGIONS and not isinstance(self.instance_types[0], _WithoutSNP):
        self.instance_types = [_WithoutSNP(t["InstanceType"]) for t in self.instance_types]
    return original(self, instance_types, filters)


@operation(EC2Response)
def describe_instance_types(request, p):
    found = backend(request.region).describe_instance_types(p.get("InstanceTypes", []),
                                                            request._filters_from_querystring())
    start, size = int(p.get("NextToken", 0)), int(p.get("MaxResults", 100))
    return {"InstanceTypes": found[start:start + size],
            "NextToken": str(start + size) if len(found) > start + size else None}


# Launch templates


@operation(EC2Response)
def create_launch_template(request, p):
    tags = {s["ResourceType"]: {t["Key"]: t["Value"] for t in s["Tags"]} for s in p.get("TagSpecifications", [])}
    template = backend(request.region).create_launch_template(
        p["LaunchTemplateName"], p.get("VersionDescription"), _data(p), tags)
    return {"LaunchTemplate": template}


@operation(EC2Response)
def create_launch_template_version(request, p):
    b = backend(request.region)
    by_id = "LaunchTemplateId" in p
    template = (b.get_launch_template(p["LaunchTemplateId"]) if by_id
                else b.get_launch_template_by_name(p["LaunchTemplateName"]))
    data = _data(p)
    if source := p.get("SourceVersion"):
        data = {**template.get_version(int(source)).data, **data}
    version = template.create_version(data, p.get("VersionDescription"))
    return {"LaunchTemplateVersion": {"LaunchTemplateId": template.id, "LaunchTemplateName": template.name,
                                      "VersionNumber": version.number, "LaunchTemplateData": version.data}}


def user_data(data):
    """The decoded user data of launch template data."""
    return base64.b64decode(data["UserData"].as_bytes()) if data.get("UserData") else b""


USER_DATA_LIMIT = 16384  # bytes before base64; Amazon EC2 user guide, "Run commands when you launch an EC2 instance"


def _data(p):
    data = dict(p["LaunchTemplateData"])
    data["UserData"] = parse_user_data(data.get("UserData"))
    if len(user_data(data)) > USER_DATA_LIMIT:
        raise AWSError("InvalidUserData.Malformed", f"User data is limited to {USER_DATA_LIMIT} bytes")
    return data


# Instances


@extend(Instance, "__init__")
def _instance(original, self, ec2_backend, image_id, user_data, security_groups, **kwargs):
    """Adds what describe-instances returns and moto does not take from request and launch template."""
    original(self, ec2_backend, image_id, user_data, security_groups, **kwargs)
    image = ec2_backend.amis.get(self.image_id)
    self.boot_mode = image.boot_mode if image else None
    self.current_instance_boot_mode = "uefi" if (self.boot_mode or "").startswith("uefi") else "legacy-bios"
    self.tpm_support = image.tpm_support if image else None
    self.cpu_options = None
    self.launch_template_version = None
    if kwargs.get("launch_template"):
        version = ec2_backend._get_template_from_args(kwargs["launch_template"])
        self.launch_template_version = version.number
        self.set_cpu_options(version.data.get("CpuOptions"))
        if version.data.get("MetadataOptions") and not kwargs.get("metadata_options"):
            self.metadata_options = MetadataOptions(version.data["MetadataOptions"])
        if profile := version.data.get("IamInstanceProfile"):
            self.iam_instance_profile = _profile(profile)


def _tags(self):
    """moto looks at the tags of everything for those of one instance."""
    tags = self.ec2_backend.tags.get(self.id, {})
    return [{"key": k, "value": v, "resource_id": self.id, "resource_type": "instance"} for k, v in tags.items()]


Instance.get_tags = _tags


def _set_cpu_options(self, options):
    if not options:
        return
    if options.get("AmdSevSnp") == "enabled" and not supports_snp(self.ec2_backend.region_name, self.instance_type):
        raise AWSError("InvalidParameterCombination", "The specified instance type does not support AMD SEV-SNP")
    self.cpu_options = {"CoreCount": 1, "ThreadsPerCore": 2, **options}


Instance.set_cpu_options = _set_cpu_options


def _profile(profile):
    for found in iam_backends[ACCOUNT]["aws"].instance_profiles.values():
        if found.arn == profile.get("Arn") or found.name == profile.get("Name"):
            return {"Arn": found.arn, "Id": found.id}
    raise AWSError("InvalidParameterValue", f"Value ({profile.get('Name') or profile.get('Arn')}) for parameter "
                   "iamInstanceProfile.name is invalid. Invalid IAM Instance Profile name")


def launch(region, count, version, template, subnet, tags, group=None):
    """Launches for an Auto Scaling group: one reservation an instance, block devices of the launch template only."""
    b, instances = backend(region), []
    data = version.data
    zone = b.get_subnet(subnet).availability_zone
    if data.get("ImageId") not in {a.id for a in b.describe_images()}:
        raise AWSError("ValidationError", "You must use a valid fully-formed launch template. "
                       f"The image id '[{data.get('ImageId')}]' does not exist")
    for _ in range(count):
        reservation = b.run_instances(
            data["ImageId"], 1, version.user_data, [], instance_type=data.get("InstanceType"), tags={"instance": tags},
            placement=zone, launch_template={"LaunchTemplateId": template.id, "Version": version.number},
            subnet_id=subnet,
            is_instance_type_default=False, block_device_mappings=data.get("BlockDeviceMappings") or [],
            region_name=region)
        instance, = reservation.instances
        if group:
            instance.autoscaling_group = group
        instances.append(instance)
    return instances


@extend(EC2Response)
def run_instances(original, request):
    result = original(request)
    for instance in result._result.instances:
        instance.set_cpu_options(request._get_params().get("CpuOptions"))
    return result


@operation(EC2Response)
def describe_instances(request, p):
    """Pages of a thousand, where moto's have a hundred; and found in one pass, where moto makes one for every ID."""
    b, wanted = backend(request.region), set(p.get("InstanceIds", []))
    found = b.all_reservations()
    if wanted:
        for reservation in found:
            reservation.instances = [i for i in reservation.instances if i.id in wanted]
        found = [r for r in found if r.instances]
        if missing := wanted - {i.id for r in found for i in r.instances}:
            raise InvalidInstanceIdError(sorted(missing))
    if filters := request._filters_from_querystring():
        found = filter_reservations(found, filters)
    start, size = int(p.get("NextToken", 0)), int(p.get("MaxResults", 1000))
    return {"Reservations": found[start:start + size],
            "NextToken": str(start + size) if len(found) > start + size else None}


@extend(InstanceBackend)
def terminate_instances(original, self, instance_ids):
    from . import ecs  # which needs this module

    result = original(self, instance_ids)
    ecs.terminated(self.region_name, instance_ids)
    return result
