// Runs queries with node-postgres. Arguments, commands and output are those of database.py. The packages are in node_modules
// beside this file.

import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import pg from "pg";

const QUERY = "select current_user";

const [, server] = process.argv.slice(2);
const { port, ca, cert, key, binding } = JSON.parse(server);
const read = (path) => path && readFileSync(path);
const parameters = {
  host: "localhost",
  port,
  database: "postgres",
  ssl: { ca: read(ca), cert: read(cert), key: read(key) },
  enableChannelBinding: binding === "require",
};

let pool = null;
let size = 0;
let current = null;
let ended = 0;

const userOf = async (client) => (await client.query(QUERY)).rows[0].current_user;

const operations = {
  async connect(user, password) {
    const client = new pg.Client({ ...parameters, user, password });
    client.on("error", () => {});
    try {
      await client.connect();
      return [await userOf(client)];
    } finally {
      await client.end();
    }
  },
  async pool(user, password, count) {
    [size, current] = [count, password];
    pool = new pg.Pool({ ...parameters, user, password: async () => current, min: size, max: size, idleTimeoutMillis: 0 });
    // The error of an idle connection that ends.
    pool.on("error", () => {});
    pool.on("remove", () => {
      ended += 1;
    });
    await operations.query();
  },
  async password(password) {
    current = password;
  },
  async lost(count) {
    while (ended < count) await once(pool, "remove");
  },
  async query() {
    const clients = await Promise.all(Array.from({ length: size }, () => pool.connect()));
    const users = await Promise.all(clients.map(userOf));
    clients.forEach((client) => client.release());
    return users;
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const [operation, ...values] = JSON.parse(line);
  let result;
  try {
    result = { users: (await operations[operation](...values)) ?? null };
  } catch (error) {
    result = { error: error.constructor.name, code: error.code ?? null, message: error.message };
  }
  console.log(JSON.stringify(result));
}
await pool?.end();
