"""The AWS that the tests of sevagent talk to: moto, and what moto lacks.

moto emulates the single services. CloudFormation is ours (template.py, stacks.py, resources.py): it creates, updates
and deletes resources by calling the public APIs of the other services, as AWS does. The other modules add to one
service each what AWS documents and moto leaves out. Every addition has a test beside this package.
"""
