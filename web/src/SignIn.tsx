/** The dialog that asks for a token, whenever somebody waits for one. */
import { useState, type FormEvent } from 'react';
import { giveUp, signIn, signInWanted } from './api/session';
import { useStore } from './store';
import { Button, Dialog, Field, TextInput } from './ui';

function Form({ why }: { why: string }) {
  const [text, setText] = useState('');
  const [error, setError] = useState<string>();
  const submit = (event: FormEvent): void => {
    event.preventDefault();
    const token = text.trim();
    // a header holds visible ASCII alone; anything else would fail as "cannot be reached"
    if (!/^[\x21-\x7e]+$/.test(token)) setError(token === '' ? 'There is no token yet' : 'A token is of letters, digits and _ alone');
    else signIn(token);
  };
  return (
    <form onSubmit={submit} className="sign-in">
      <p>{why}</p>
      <Field label="Token" error={error} hint={<>Whoever runs the server makes one: <code>tools/tokens add NAME --scope read</code>. It is kept until this tab is closed.</>}>
        <TextInput type="password" value={text} onChange={setText} autoFocus name="token" />
      </Field>
      <p className="actions"><Button type="submit" kind="primary">Sign in</Button> <Button onClick={giveUp}>Not now</Button></p>
    </form>
  );
}

export function SignIn() {
  const why = useStore(signInWanted);
  return why === null ? null : <Dialog title="Sign in" onClose={giveUp}><Form why={why} /></Dialog>;
}
