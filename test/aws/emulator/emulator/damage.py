"""What a test breaks behind the backs of the APIs, because none of them breaks it."""

from . import ec2, ecs


def damage(instance, region="us-east-2", **properties):
    """Changes properties of an instance: type, snp, boot_mode, image_boot_mode, root_encrypted, agent_connected."""
    backend = ec2.backend(region)
    found = backend.get_instance(instance)
    for name, value in properties.items():
        if name == "type":
            found.instance_type = value
        elif name == "snp":
            found.cpu_options = {**(found.cpu_options or {}), "AmdSevSnp": value}
        elif name == "boot_mode":
            found.current_instance_boot_mode = value
        elif name == "image_boot_mode":
            backend.amis[found.image_id].boot_mode = value
        elif name == "root_encrypted":
            for mapping in found.block_device_mapping.values():
                backend.volumes[mapping.volume_id].encrypted = value
        elif name == "agent_connected":
            for nodes in ecs.backend(region).container_instances.values():
                for node in nodes.values():
                    if node.ec2_instance_id == instance:
                        node.agent_connected = value
        else:
            raise ValueError(f"nothing is known of {name}")
