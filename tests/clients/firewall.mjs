// Changes trusted sources with @digitalocean/dots, DigitalOcean's client for TypeScript. Arguments and output are those of
// firewall.py. The packages are in node_modules beside this file.

import { FetchRequestAdapter } from "@microsoft/kiota-http-fetchlibrary";
import { createDigitalOceanClient, DigitalOceanApiKeyAuthenticationProvider } from "@digitalocean/dots";

let requests = 0;
const send = globalThis.fetch;
globalThis.fetch = (...request) => {
  requests += 1;
  return send(...request);
};

const [endpoint, token, database, steps] = process.argv.slice(2);
const adapter = new FetchRequestAdapter(new DigitalOceanApiKeyAuthenticationProvider(token));
adapter.baseUrl = endpoint;
const { firewall, ca } = createDigitalOceanClient(adapter).v2.databases.byDatabase_cluster_uuid(database);

const replace = async (rules) => {
  await firewall.put({ rules });
  return null;
};

const operations = {
  list: () => firewall.get(),
  replace,
  append: async (rule) => replace([...(await firewall.get()).rules, rule]),
  remove: async (value) => replace((await firewall.get()).rules.filter((rule) => rule.value !== value)),
  ca: () => ca.get(),
};

const outcomes = [];
for (const [operation, ...values] of JSON.parse(steps)) {
  requests = 0;
  try {
    outcomes.push({ result: await operations[operation](...values), requests });
  } catch (error) {
    const { responseStatusCode: status, messageEscaped } = error;
    if (status === undefined) throw error;
    outcomes.push({ error: error.constructor.name, status, message: messageEscaped, requests });
  }
}
console.log(JSON.stringify(outcomes));
