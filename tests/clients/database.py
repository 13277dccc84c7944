"""Runs queries with drivers of PostgreSQL for Python.

    database.py DRIVER SERVER

DRIVER is psycopg or asyncpg. SERVER is a JSON object with "port" and "ca", and with "cert" and "key" for a client certificate
and "binding" for channel_binding. Reads commands from standard input, each a JSON array on a line:

    ["connect", USER, PASSWORD]     a connection of its own
    ["pool", USER, PASSWORD, SIZE]  a pool with so many connections
    ["password", PASSWORD]          what new connections of the pool authenticate with
    ["lost", COUNT]                 waits until so many connections of the pool have ended, where the driver reports that
    ["query"]                       asks every connection of the pool, all of them at the same time

Prints one JSON object for each command: "users", the role of each connection at the database, or "error" (the class), "code"
(SQLSTATE) and "message". PASSWORD is null for a client that has none.
"""

import asyncio
import json
import ssl
import sys

QUERY = "select current_user"


class Psycopg:
    """Everything but the commands runs in the threads of psycopg_pool."""

    def __init__(self, server):
        self.parameters = {
            "host": "localhost",
            "hostaddr": "127.0.0.1",
            "port": server["port"],
            "dbname": "postgres",
            "sslmode": "verify-full",
            "sslrootcert": server["ca"],
            "autocommit": True,
        }
        names = {"cert": "sslcert", "key": "sslkey", "binding": "channel_binding"}
        self.parameters |= {names[key]: server[key] for key in names if key in server}

    def login(self, user, password):
        return self.parameters | {"user": user} | ({} if password is None else {"password": password})

    async def connect(self, user, password):
        import psycopg

        with psycopg.connect(**self.login(user, password)) as connection:
            return [connection.execute(QUERY).fetchone()[0]]

    async def pool(self, user, password, size):
        from psycopg_pool import ConnectionPool

        self.user, self.size = user, size
        self.password(password)
        # A connection that has ended is replaced when it is to be used.
        self.connections = ConnectionPool(
            kwargs=lambda: self.current, min_size=size, max_size=size, check=ConnectionPool.check_connection
        )
        self.connections.wait()

    def password(self, password):
        self.current = self.login(self.user, password)

    async def lost(self, count):
        """A connection without an event loop notices its end when it is used."""

    async def query(self):
        connections = [self.connections.getconn() for _ in range(self.size)]
        users = [connection.execute(QUERY).fetchone()[0] for connection in connections]
        for connection in connections:
            self.connections.putconn(connection)
        return users

    async def close(self):
        if hasattr(self, "connections"):
            self.connections.close()


class Asyncpg:
    def __init__(self, server):
        context = ssl.create_default_context(cafile=server["ca"])
        if "cert" in server:
            context.load_cert_chain(server["cert"], server["key"])
        self.parameters = {"host": "localhost", "port": server["port"], "database": "postgres", "ssl": context}
        self.ended = 0
        self.has_ended = asyncio.Condition()

    async def connect(self, user, password):
        import asyncpg

        connection = await asyncpg.connect(user=user, password=password, **self.parameters)
        users = [await connection.fetchval(QUERY)]
        await connection.close()
        return users

    async def pool(self, user, password, size):
        import asyncpg

        self.size = size
        self.password(password)

        async def observe(connection):
            connection.add_termination_listener(self.note_end)

        self.connections = await asyncpg.create_pool(
            user=user, password=lambda: self.current, min_size=size, max_size=size, init=observe, **self.parameters
        )

    def password(self, password):
        self.current = password

    async def note_end(self, _):
        async with self.has_ended:
            self.ended += 1
            self.has_ended.notify_all()

    async def lost(self, count):
        async with self.has_ended:
            await self.has_ended.wait_for(lambda: self.ended >= count)

    async def query(self):
        connections = await asyncio.gather(*(self.connections.acquire() for _ in range(self.size)))
        users = await asyncio.gather(*(connection.fetchval(QUERY) for connection in connections))
        for connection in connections:
            await self.connections.release(connection)
        return list(users)

    async def close(self):
        if hasattr(self, "connections"):
            await self.connections.close()


async def perform(driver, command, values):
    if command == "password":
        return driver.password(*values)
    return await {"connect": driver.connect, "pool": driver.pool, "lost": driver.lost, "query": driver.query}[command](
        *values
    )


async def main():
    driver = {"psycopg": Psycopg, "asyncpg": Asyncpg}[sys.argv[1]](json.loads(sys.argv[2]))
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        command, *values = json.loads(line)
        try:
            result = {"users": await perform(driver, command, values)}
        except Exception as error:
            result = {
                "error": type(error).__name__,
                "code": getattr(error, "sqlstate", None),
                "message": str(error),
            }
        print(json.dumps(result), flush=True)
    await driver.close()


asyncio.run(main())
