"""AWS::ImageBuilder::*: the physical ID is the ARN. Components and recipes are never changed, only replaced."""

from .api import delete_quietly
from .resource import Type

GONE = "ResourceNotFoundException"


class Component(Type):
    tagged = False  # a change of the tags alone leaves it
    replacing = ("Name", "Version", "ChangeDescription", "Description", "Platform", "Data", "Uri", "KmsKeyId",
                 "SupportedOsVersions")

    def create(self, c, p):
        p["SemanticVersion"], p["Tags"] = p.pop("Version"), tags(c, p)
        arn = c.call("imagebuilder", "CreateComponent", p)["componentBuildVersionArn"]
        return arn, {"Arn": arn}

    def update(self, c, resource, p, old):
        return resource.attributes

    def delete(self, c, resource):
        delete_quietly(c.client("imagebuilder").delete_component, GONE, componentBuildVersionArn=resource.physical_id)


class ImageRecipe(Component):
    replacing = ("Name", "Version", "Components", "ParentImage", "Description", "BlockDeviceMappings",
                 "WorkingDirectory")

    def create(self, c, p):
        p["SemanticVersion"], p["Tags"] = p.pop("Version"), tags(c, p)
        arn = c.call("imagebuilder", "CreateImageRecipe", p)["imageRecipeArn"]
        return arn, {"Arn": arn, "Name": p["Name"]}

    def delete(self, c, resource):
        delete_quietly(c.client("imagebuilder").delete_image_recipe, GONE, imageRecipeArn=resource.physical_id)


class Changeable(Type):
    """What has a name instead of versions, and is changed in place: the API's update takes everything anew."""

    tagged = False
    replacing = ("Name",)

    def __init__(self, kind):
        self.kind, self.arn = kind, kind[0].lower() + kind[1:] + "Arn"

    def create(self, c, p):
        arn = c.call("imagebuilder", f"Create{self.kind}", {**p, "Tags": tags(c, p)})[self.arn]
        return arn, {"Arn": arn, "Name": p["Name"]}

    def update(self, c, resource, p, old):
        given = {k: v for k, v in p.items() if k not in ("Name", "Tags")}
        c.call("imagebuilder", f"Update{self.kind}", {**given, self.arn: resource.physical_id})
        return resource.attributes

    def delete(self, c, resource):
        c.call("imagebuilder", f"Delete{self.kind}", {self.arn: resource.physical_id})


def tags(c, p):
    return {**{t["Key"]: t["Value"] for t in c.tags([])}, **(p.pop("Tags", None) or {})}
