// Runs commands of Redis with ioredis. Argument, commands and output are those of cache.py. The packages are in node_modules
// beside this file.

import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { Redis } from "ioredis";

const { port, ca, cert, key, protocol } = JSON.parse(process.argv[2]);
const read = (path) => path && readFileSync(path);
const parameters = { host: "localhost", port, protocol, tls: { ca: read(ca), cert: read(cert), key: read(key) } };

/** Runs an action with a client that connects once. */
const withClient = async (username, password, action) => {
  const options = { ...parameters, username, password, connectionName: "shop", retryStrategy: null, lazyConnect: true };
  const client = new Redis(options);
  client.on("error", () => {});
  try {
    return await action(client);
  } finally {
    client.disconnect();
  }
};

let pool = [];
let user = null;
let ended = 0;
let lost = () => {};

const operations = {
  connect: (username, password) =>
    withClient(username, password, async (client) => {
      const info = Object.fromEntries((await client.client("INFO")).trim().split(" ").map((field) => field.split("=")));
      return [info.user, info.name, Number(info.resp)];
    }),
  work: (username, password) =>
    withClient(username, password, async (client) => {
      const results = await client.multi().set("stock", 41).incr("stock").get("stock").exec();
      const subscriber = client.duplicate();
      const message = once(subscriber, "message");
      await subscriber.subscribe("news");
      await client.publish("news", "sold");
      const [, text] = await message;
      subscriber.disconnect();
      return [results.slice(1).map(([, value]) => value), text];
    }),
  async pool(username, password, size) {
    user = username;
    pool = Array.from({ length: size }, () => {
      const client = new Redis({ ...parameters, username, password });
      client.on("error", () => {});
      client.on("close", () => {
        ended += 1;
        lost();
      });
      return client;
    });
    return operations.query();
  },
  async password(password) {
    for (const client of pool) client.options.password = password;
  },
  async renew(password) {
    await operations.password(password);
    await Promise.all(pool.map((client) => client.auth(user, password)));
  },
  async lost(count) {
    while (ended < count) await new Promise((resolve) => (lost = resolve));
  },
  query: () => Promise.all(pool.map((client) => client.acl("WHOAMI"))),
};

for await (const line of createInterface({ input: process.stdin })) {
  const [operation, ...values] = JSON.parse(line);
  let result;
  try {
    result = { answer: (await operations[operation](...values)) ?? null };
  } catch (error) {
    result = { error: error.name, message: error.message };
  }
  console.log(JSON.stringify(result));
}
pool.forEach((client) => client.disconnect());
