"""Where ECS puts tasks: placement constraints in the cluster query language, resources, and the services' counts.

Amazon ECS developer guide, "Amazon ECS task placement" and "Create expressions to define container instances".
"""

import copy
import datetime
import re
import uuid

from moto.ecs.models import Task

from .api import AWSError

_TOKEN = re.compile(r"\s*(==|!=|&&|\|\||[()!]|[^\s()!=&|]+)")
# Of those emulated.
_NAMES = {"equals": "==", "not_equals": "!=", "exists": "exists", "and": "&&", "or": "||",
          "not": "!"}


def bad_expression(expression):
    return AWSError("InvalidParameterException", f"Invalid placement constraint expression: {expression}")


class _Parser:
    """expression := subject operator [argument], joined by and, or, not and parentheses."""

    def __init__(self, expression, node):
        self.expression, self.node = expression, node
        self.tokens = [_NAMES.get(t, t) for t in _TOKEN.findall(expression)]

    def evaluate(self):
        result = self._or()
        if self.tokens:
            raise bad_expression(self.expression)
        return result

    def _peek(self):
        return self.tokens[0] if self.tokens else None

    def _next(self):
        if not self.tokens:
            raise bad_expression(self.expression)
        return self.tokens.pop(0)

    def _or(self):
        result = self._and()
        while self._peek() == "||":
            self._next()
            right = self._and()
            result = result or right
        return result

    def _and(self):
        result = self._term()
        while self._peek() == "&&":
            self._next()
            right = self._term()
            result = result and right
        return result

    def _term(self):
        if self._peek() == "!":
            self._next()
            return not self._term()
        if self._peek() == "(":
            self._next()
            result = self._or()
            if self._next() != ")":
                raise bad_expression(self.expression)
            return result
        return self._comparison()

    def _comparison(self):
        value = self._subject(self._next())
        operator = self._next()
        if operator == "!" and self._peek() == "exists":
            operator += self._next()
        if operator in ("exists", "!exists"):
            return (value is not None) == (operator == "exists")
        if operator in ("==", "!="):
            return (value == self._next()) == (operator == "==")
        raise bad_expression(self.expression)

    def _subject(self, subject):
        if subject.startswith("attribute:"):
            return self.node.attributes.get(subject.removeprefix("attribute:"))
        if subject == "ec2InstanceId":
            return self.node.ec2_instance_id
        if subject == "agentConnected":
            return str(self.node.agent_connected).lower()
        raise bad_expression(self.expression)


def matches(expression, node):
    """Whether a container instance satisfies an expression of the cluster query language."""
    return _Parser(expression, node).evaluate()


def requirements(b, definition):
    """What a task takes: its own CPU and memory where it has them, since containers then need none, else theirs."""
    containers = [{**c, "memory": c.get("memory", c.get("memoryReservation", 0))}
                  for c in definition.container_definitions]
    whole = copy.copy(definition)
    whole.container_definitions = containers
    needed = b._calculate_task_resource_requirements(whole)
    if definition.cpu:
        needed["CPU"] = int(definition.cpu)
    if definition.memory:
        needed["MEMORY"] = int(definition.memory)
    return needed


def running(b, cluster, group):
    return [t for t in b.tasks.get(cluster.name, {}).values() if t.group == group and t.last_status == "RUNNING"]


def candidates(b, cluster, definition, constraints, group):
    """The container instances that can take a task, the emptiest first, or the reason why there is none."""
    constraints = [*constraints, *(definition.placement_constraints or [])]
    needed = requirements(b, definition)
    active = [n for n in b.container_instances.get(cluster.name, {}).values() if n.status == "ACTIVE"
              and n.agent_connected]
    if not active:
        return [], "No Container Instances were found in your cluster."
    taken = [t.container_instance_arn for t in running(b, cluster, group)]
    fitting = []
    for node in active:
        for constraint in constraints:
            if constraint["type"] == "memberOf" and not matches(constraint["expression"], node):
                break
            if constraint["type"] == "distinctInstance" and node.container_instance_arn in taken:
                break
        else:
            fitting.append(node)
    if not fitting:
        return [], "MemberOf placement constraint unsatisfied."
    able = [n for n in fitting if b._can_be_placed(n, needed)]
    return sorted(able, key=lambda n: (taken.count(n.container_instance_arn), n.running_tasks_count)), "RESOURCE:MEMORY"


def start(b, cluster, definition, node, group, network=None, p=None):
    p = p or {}
    needed = requirements(b, definition)
    task = Task(cluster, definition, node.container_instance_arn, needed, backend=b, group=group, launch_type="EC2",
                overrides=p.get("overrides"), started_by=p.get("startedBy", ""), tags=p.get("tags"),
                networking_configuration=network)
    for container in task.containers:
        container.last_status = "RUNNING"
    b.update_container_instance_resources(node, needed)
    node.running_tasks_count += 1
    b.tasks.setdefault(cluster.name, {})[task.task_arn] = task
    return task


def stop(b, cluster, task, why):
    node = b.container_instances.get(cluster.name, {}).get(task.container_instance_arn.split("/")[-1])
    if node:
        b.update_container_instance_resources(node, task.resource_requirements, removing=True)
        node.running_tasks_count -= 1
    task.last_status = task.desired_status = "STOPPED"
    task.stopped_reason = why


def schedule(b, cluster, restart=None):
    """Brings the tasks of all services of a cluster to where they should be."""
    for service in [s for s in b.services.values() if s.cluster_name == cluster.name]:
        group = f"service:{service.name}"
        known = {n.container_instance_arn for n in b.container_instances.get(cluster.name, {}).values()
                 if n.status == "ACTIVE"}
        for task in running(b, cluster, group):
            if task.container_instance_arn not in known:
                stop(b, cluster, task, "Container instance left")
            elif task.task_definition_arn != service.task_definition or service is restart:
                stop(b, cluster, task, "Scaling activity initiated by deployment")
        _fill(b, cluster, service, group)


def _fill(b, cluster, service, group):
    if service.status != "ACTIVE":
        service.desired_count = 0
    definition = b.describe_task_definition(service.task_definition)
    constraints = list(getattr(service, "placement_constraints", None) or [])
    if service.scheduling_strategy == "DAEMON":
        constraints.append({"type": "distinctInstance"})
        free = candidates(b, cluster, definition, constraints, group)[0]
        service.desired_count = len(running(b, cluster, group)) + len(free)
    while (tasks := running(b, cluster, group)) and len(tasks) > service.desired_count:
        stop(b, cluster, tasks[-1], "Scaling activity initiated by service")
    while len(running(b, cluster, group)) < service.desired_count:
        fitting, why = candidates(b, cluster, definition, constraints, group)
        if not fitting:
            _note(service, f"(service {service.name}) was unable to place a task because no container instance met all "
                           f"of its requirements. Reason: {why}")
            break
        start(b, cluster, definition, fitting[0], group, service.network_configuration or None)
    service.running_count = len(running(b, cluster, group))
    service.pending_count = service.desired_count - service.running_count
    if not service.pending_count:
        _note(service, f"(service {service.name}) has reached a steady state.")
    for deployment in service.deployments[:1]:
        deployment |= {"desiredCount": service.desired_count, "runningCount": service.running_count,
                       "pendingCount": service.pending_count, "taskDefinition": service.task_definition,
                       "platformFamily": None,
                       "rolloutState": "IN_PROGRESS" if service.pending_count else "COMPLETED"}


def _note(service, message):
    if not service.events or service.events[0]["message"] != message:
        service.events.insert(0, {"id": str(uuid.uuid4()), "createdAt": datetime.datetime.now(datetime.timezone.utc),
                                  "message": message})
