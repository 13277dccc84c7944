// The scenarios of the tests in panel.rs, by name.

import { main } from './driver.mjs';
import * as access from './access.mjs';
import * as appearance from './appearance.mjs';
import * as attacks from './attacks.mjs';
import * as certificates from './certificates.mjs';
import * as clients from './clients.mjs';
import * as fleet from './fleet.mjs';
import * as operation from './operation.mjs';
import * as sources from './sources.mjs';

await main({ ...access, ...appearance, ...attacks, ...certificates, ...clients, ...fleet, ...operation, ...sources });
