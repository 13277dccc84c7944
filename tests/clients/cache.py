"""Runs commands of Redis with redis-py.

    cache.py SERVER

SERVER is a JSON object with "port", "ca" and "protocol" (2 or 3), and with "cert" and "key" for a client certificate. Reads
commands from standard input, each a JSON array on a line:

    ["connect", USER, PASSWORD]     a connection of its own with a name: what CLIENT INFO shows of it
    ["work", USER, PASSWORD]        a transaction in a pipeline, and a message from another connection
    ["pool", USER, PASSWORD, SIZE]  a pool with so many connections, and a subscription with RESP3
    ["password", PASSWORD]          what new connections of the pool authenticate with
    ["renew", PASSWORD]             the same, and open connections of the pool authenticate again
    ["lost", COUNT]                 waits until so many connections of the pool have ended, where the driver reports that
    ["query"]                       asks every connection of the pool, all of them at the same time
    ["message"]                     publishes a message to the subscription

Prints one JSON object for each command: "answer", or "error" (the class) and "message". USER and PASSWORD are null for a client
that has none.
"""

import json
import sys
from contextlib import closing

from redis import Redis
from redis.auth.token import SimpleToken
from redis.backoff import NoBackoff
from redis.credentials import StreamingCredentialProvider
from redis.retry import Retry


class Credentials(StreamingCredentialProvider):
    def __init__(self, user, password):
        self.user, self.password, self.callbacks = user, password, []

    def get_credentials(self):
        return self.user, self.password

    def on_next(self, callback):
        self.callbacks.append(callback)

    def on_error(self, callback):
        pass

    def is_streaming(self):
        return True

    def renew(self, password):
        self.password = password
        for callback in self.callbacks:
            callback(SimpleToken(password, -1, 0, {"oid": self.user}))


class Program:
    def __init__(self, server):
        self.parameters = {
            "host": "localhost",
            "port": server["port"],
            "protocol": server["protocol"],
            "decode_responses": True,
            "ssl": True,
            "ssl_ca_certs": server["ca"],
            "ssl_certfile": server.get("cert"),
            "ssl_keyfile": server.get("key"),
        }
        self.redis = self.subscription = None

    def client(self, user, password):
        # By default, redis-py tries a rejected password ten times again.
        once = Retry(NoBackoff(), 0)
        return Redis(**self.parameters, username=user, password=password, client_name="shop", retry=once)

    def connect(self, user, password):
        with self.client(user, password) as client:
            info = client.client_info()
            return [info["user"], info["name"], int(info["resp"])]

    def work(self, user, password):
        with self.client(user, password) as client, client.pubsub() as subscription:
            with client.pipeline(transaction=True) as pipeline:
                results = pipeline.set("stock", 41).incr("stock").get("stock").execute()
            subscription.subscribe("news")
            next(subscription.listen())
            client.publish("news", "sold")
            return [results[1:], next(subscription.listen())["data"]]

    def pool(self, user, password, size):
        self.size, self.credentials = size, Credentials(user, password)
        self.redis = Redis(**self.parameters, credential_provider=self.credentials)
        if self.parameters["protocol"] == 3:
            self.subscription = self.redis.pubsub()
            self.subscription.subscribe("news")
            next(self.subscription.listen())
        return self.query()

    def password(self, password):
        self.credentials.password = password

    def renew(self, password):
        # One connection is in use, and authenticates again when it returns to the pool.
        used = self.redis.connection_pool.get_connection()
        self.credentials.renew(password)
        self.redis.connection_pool.release(used)

    def lost(self, count):
        """A connection without an event loop notices its end when it is used."""

    def query(self):
        connections = [self.redis.connection_pool.get_connection() for _ in range(self.size)]
        for connection in connections:
            connection.send_command("ACL", "WHOAMI")
        users = [connection.read_response() for connection in connections]
        for connection in connections:
            self.redis.connection_pool.release(connection)
        return users

    def message(self):
        self.redis.publish("news", "sold")
        return next(self.subscription.listen())["data"]

    def close(self):
        if self.subscription:
            self.subscription.close()
        if self.redis:
            self.redis.close()


with closing(Program(json.loads(sys.argv[1]))) as program:
    for line in sys.stdin:
        command, *values = json.loads(line)
        try:
            result = {"answer": getattr(program, command)(*values)}
        except Exception as error:
            result = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(result), flush=True)
