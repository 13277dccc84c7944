"""Changes trusted sources with pydo, DigitalOcean's client for Python.

    firewall.py ENDPOINT TOKEN DATABASE STEPS

STEPS is a JSON array of ["list"], ["replace", RULES], ["append", RULE], ["remove", VALUE] and ["ca"]. Prints a JSON array
with one object a step: "result", or "error" (the class), "status" and "message"; and "requests", the number of HTTP
requests that the step sent.
"""

import json
import sys

from azure.core.exceptions import HttpResponseError
from azure.core.pipeline.policies import SansIOHTTPPolicy
from pydo import Client


class RequestCounter(SansIOHTTPPolicy):
    """Counts requests. It runs for each attempt of the retry policy."""

    def __init__(self):
        self.count = 0

    def on_request(self, request):
        self.count += 1


class Firewall:
    def __init__(self, endpoint, token, database):
        self.counter = RequestCounter()
        client = Client(token, endpoint=endpoint, per_retry_policies=[self.counter])
        self.databases, self.database = client.databases, database

    def list(self):
        return self.databases.list_firewall_rules(self.database)

    def replace(self, rules):
        return self.databases.update_firewall_rules(self.database, {"rules": rules})

    def append(self, rule):
        return self.replace([*self.list()["rules"], rule])

    def remove(self, value):
        return self.replace([rule for rule in self.list()["rules"] if rule["value"] != value])

    def ca(self):
        return self.databases.get_ca(self.database)


def perform(firewall, operation, arguments):
    try:
        outcome = {"result": getattr(firewall, operation)(*arguments)}
    except HttpResponseError as error:
        outcome = {"error": type(error).__name__, "status": error.status_code, "message": error.response.text()}
    outcome["requests"], firewall.counter.count = firewall.counter.count, 0
    return outcome


def main():
    endpoint, token, database, steps = sys.argv[1:]
    firewall = Firewall(endpoint, token, database)
    print(json.dumps([perform(firewall, operation, arguments) for operation, *arguments in json.loads(steps)]))


main()
