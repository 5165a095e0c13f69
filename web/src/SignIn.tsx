/** The dialog that asks for a token, whenever somebody waits for one. What the server does not take is said at the field. */
import { useEffect, useRef, useState, type FormEvent } from 'react';
import { asApiError, isAborted, tryToken, type ApiError } from './api/client';
import { giveUp, signIn, signInWanted } from './api/session';
import { useStore } from './store';
import { visible } from './text';
import { Button, Dialog, Field, TextInput } from './ui';

function faultOf(token: string): string | undefined {
  // a header holds visible ASCII alone; anything else would fail as "cannot be reached"
  if (/^[\x21-\x7e]+$/.test(token)) return undefined;
  return token === '' ? 'There is no token yet' : 'A token is of letters, digits, - and _ alone';
}

function refusal(error: ApiError): string {
  return error.status === 401 ? `The server does not take it: ${visible(error.message)}.` : `It could not be tried: ${visible(error.message)}`;
}

function Form({ why }: { why: string }) {
  const [text, setText] = useState('');
  const [error, setError] = useState<string>();
  const [busy, setBusy] = useState(false);
  const inside = useRef<AbortController>(null);
  useEffect(() => () => inside.current?.abort(), []);
  const check = async (token: string): Promise<void> => {
    const { signal } = (inside.current = new AbortController());
    setBusy(true);
    setError(undefined);
    try {
      await tryToken(token, signal);
      signIn(token);
    } catch (thrown) {
      if (isAborted(thrown)) return;
      setError(refusal(asApiError(thrown)));
      setBusy(false);
    }
  };
  const submit = (event: FormEvent): void => {
    event.preventDefault();
    const token = text.trim();
    const fault = faultOf(token);
    if (fault !== undefined) setError(fault);
    else if (!busy) void check(token);
  };
  return (
    <form onSubmit={submit} className="sign-in">
      <p>{visible(why)}</p>
      <Field label="Token" error={error} hint={<>Whoever runs the server makes one: <code>tools/tokens add NAME --scope read</code>. It is kept until this tab is closed.</>}>
        <TextInput type="password" value={text} onChange={(token) => { setText(token); setError(undefined); }} autoFocus name="token" />
      </Field>
      <p className="actions">
        <Button type="submit" kind="primary">{busy ? 'Asking the server …' : 'Sign in'}</Button> <Button onClick={giveUp}>Not now</Button>
      </p>
    </form>
  );
}

export function SignIn() {
  const why = useStore(signInWanted);
  return why === null ? null : <Dialog title="Sign in" onClose={giveUp}><Form why={why} /></Dialog>;
}
