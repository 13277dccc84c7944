// Secrets that a dialog shows once: a created token, the key of an issued certificate.

import { bus } from './api.js';

/**
 * Has `wipe` called when the session ends, because the dialog stays in the page below the sign-in. Returns a function
 * that calls it earlier. It is called once.
 */
export function holdSecret(wipe) {
  const release = () => {
    bus.removeEventListener('session-ended', release);
    wipe();
  };
  bus.addEventListener('session-ended', release, { once: true });
  // The session may have ended while the answer was on its way.
  if (document.getElementById('signin')) release();
  return release;
}
