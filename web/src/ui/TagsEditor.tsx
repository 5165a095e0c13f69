/** Tags that series must have: names are exact, values may be patterns. */
import { useState } from 'react';
import { visible } from '../text';
import { Button, Id } from './basic';
import type { Scope } from './lookup';
import { Picker } from './Picker';

export interface TagsEditorProps {
  /** Name to what a picker with patterns holds (text.ts). */
  value: Record<string, string>;
  onChange: (value: Record<string, string>) => void;
  /** Whether series may have no other tags (the API's more_tags is the opposite); without onExact there is no such box. */
  exact?: boolean;
  onExact?: (exact: boolean) => void;
  error?: string;
  scope?: Scope;
}

export function TagsEditor({ value, onChange, exact = false, onExact, error, scope }: TagsEditorProps) {
  const [name, setName] = useState<string[]>([]);
  const chosen = name[0];
  const remove = (gone: string) => onChange(Object.fromEntries(Object.entries(value).filter(([one]) => one !== gone)));
  const add = (values: string[]): void => {
    const [tagValue] = values;
    if (chosen === undefined || tagValue === undefined) return;
    onChange({ ...value, [chosen]: tagValue });
    setName([]);
  };
  return (
    <fieldset className="tags-editor">
      <legend>Tags</legend>
      <ul className="chips">
        {Object.entries(value).map(([one, wanted]) => (
          <li key={one} className="chip">
            <Id text={one} /> = <Id text={wanted.replace(/^=/, '')} />
            <button type="button" aria-label={`Remove tag ${visible(one)}`} onClick={() => remove(one)}>×</button>
          </li>
        ))}
      </ul>
      <div className="tags-add">
        <Picker label="Tag" quietLabel kind="tag" value={name} onChange={setName} scope={scope} placeholder="Name of a tag" />
        {chosen !== undefined && (
          <Picker label={<>Value of <Id text={chosen} /></>} kind="tag" tagName={chosen} value={[]} onChange={add} patterns scope={scope}
            hint="* and ? stand for anything; without a value the tag is not asked for" />
        )}
      </div>
      {onExact !== undefined && Object.keys(value).length > 0 && (
        <label className="check"><input type="checkbox" checked={exact} onChange={(event) => onExact(event.target.checked)} /> exactly these tags, no others</label>
      )}
      {chosen !== undefined && <Button small kind="quiet" onClick={() => setName([])}>Cancel</Button>}
      <p className="field-error" role="alert">{error}</p>
    </fieldset>
  );
}
