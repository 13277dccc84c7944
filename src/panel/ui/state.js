// What all views share: who is signed in, and the last status of the program.

import { lookup } from './format.js';

export const state = {
  session: null,
  status: null,
  certificates: null,
  /** The last change of trusted sources, to undo it: `{ listener, before, etag }`, with the rules before it. */
  undo: null,
};

const RANK = { viewer: 0, operator: 1, owner: 2 };

/** Whether the role of the session suffices. The server decides; the panel only does not offer what it would refuse. */
export const can = (role) => (lookup(RANK, state.session?.role) ?? -1) >= RANK[role];

export const listeners = () => state.status?.listeners ?? [];
/** Whether the rules of the listener are in the store of the fleet. */
export const isShared = (name) => Boolean(listenerNamed(name)?.fleet_rules);
/** The source groups, which have rules as listeners do and are addressed as `group:NAME`. */
export const sourceGroups = () => (state.status?.source_groups ?? []).map((each) => `group:${each.name}`);
export const isGroup = (owner) => owner.startsWith('group:');
/** Whether a listener has clients of its own, by `[listener.credentials]`. */
export const authenticates = () => listeners().some((each) => each.credentials);
export const listenerNamed = (name) => listeners().find((each) => each.name === name) ?? null;
