/**
 * The token of this session, and who waits for one. The token lives in sessionStorage: it ends with the tab and is in no
 * URL. It is never logged. Whoever is refused with 401 calls signedIn() and goes on when a person has given a token.
 */
import { makeStore } from '../store';

const KEY = 'minitrue.token';

function stored(): string {
  try {
    return sessionStorage.getItem(KEY) ?? '';
  } catch {
    return ''; // a browser that refuses storage: the token lives as long as the page then
  }
}

export const token = makeStore<string>(typeof sessionStorage === 'undefined' ? '' : stored());

/** What the sign-in dialog shows: why a token is asked for, or null while nobody waits for one. */
export const signInWanted = makeStore<string | null>(null);

interface Waiter {
  go(): void;
  refuse(): void;
}
let waiters: Waiter[] = [];
/** The person closed the dialog: nobody asks again until they want it, for screens that poll would do so every few seconds. */
let declined = false;

export function setToken(value: string): void {
  try {
    if (value === '') sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, value);
  } catch {
    // as above
  }
  token.set(value);
}

function release(what: (waiter: Waiter) => void): void {
  const waited = waiters;
  waiters = [];
  signInWanted.set(null);
  waited.forEach(what);
}

/** The dialog gives the token here, which the server has taken. */
export function signIn(value: string): void {
  declined = false;
  setToken(value);
  release((waiter) => waiter.go());
}

/** The person closed the dialog: who waited gets the 401 as an error. */
export function giveUp(): void {
  declined = true;
  release((waiter) => waiter.refuse());
}

/** How often somebody signed out: what was shown to one is not for the next, so that screens begin anew with it. */
export const signedOut = makeStore<number>(0);

export function signOut(): void {
  declined = true;
  setToken('');
  signedOut.set(signedOut.get() + 1);
}

/** The person asks for the dialog. */
export function openSignIn(): void {
  declined = false;
  signInWanted.set('Sign in with a token of this server.');
}

/** True once a token was given, false if the person would not. */
export function signedIn(why: string, signal?: AbortSignal): Promise<boolean> {
  if (declined) return Promise.resolve(false);
  return new Promise((resolve) => {
    const left = (): void => {
      waiters = waiters.filter((one) => one !== waiter);
      resolve(false);
    };
    const end = (given: boolean): void => {
      signal?.removeEventListener('abort', left);
      resolve(given);
    };
    const waiter: Waiter = { go: () => end(true), refuse: () => end(false) };
    if (signal?.aborted) return resolve(false);
    waiters.push(waiter);
    signal?.addEventListener('abort', left, { once: true });
    signInWanted.set(why);
  });
}
