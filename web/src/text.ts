/** Ids come from devices and may hold anything: here they are made fit to look at. */

/** Controls, marks that turn the direction of text or have no width, line separators, private use. */
const HIDDEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\p{Co}\u115f\u1160\u3164\uffa0\u2800]/gu;

function code(character: string): string {
  return `⟨U+${(character.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, '0')}⟩`;
}

/** The id with every character that one cannot see, or that would move others, written as ⟨U+202E⟩. */
export function visible(id: string): string {
  return id.replace(HIDDEN, code).replace(/^ +| +$/g, (spaces) => '␣'.repeat(spaces.length));
}

/** An id as the API takes it in a JSON body: literally where it would be taken for a pattern. */
export function literally(id: string): string | { exact: string } {
  return /[*?]/.test(id) || id.startsWith('~') ? { exact: id } : id;
}

/** Whether a text that a person typed is a pattern as it stands: a glob or a ~regex. */
export function isPattern(text: string): boolean {
  return /[*?]/.test(text) || text.startsWith('~');
}

/** All but * and ?, which mean the same to a glob. */
function quotedForRegex(text: string): string {
  return text.replace(/[\\.+()|[\]{}^$]/g, '\\$&');
}

/** A typed text as a pattern for everything that contains it, in capitals or not; a pattern stays, and counts capitals. */
export function asSearch(text: string): string {
  if (text === '') return '*';
  if (isPattern(text)) return text;
  // globs count capitals and RE2 need not; text without letters is the faster glob
  return /\p{L}/u.test(text) ? `~(?is).*${quotedForRegex(text)}.*` : `*${text}*`;
}

/** Tags as one text: `room=lab, floor=2`, in order of their names. */
export function tagsText(tags: Record<string, string>): string {
  return Object.keys(tags).sort().map((name) => `${name}=${tags[name] ?? ''}`).join(', ');
}

/**
 * What a picker that takes patterns holds: a text that was typed stands as it is (`line1/*`, `~pump.*`), an id that was
 * chosen and would be taken for a pattern has a `=` before it, and so has one that begins with `=`.
 */
export function pickedId(id: string): string {
  return typeof literally(id) === 'string' && !id.startsWith('=') ? id : `=${id}`;
}

/** A typed text as such a picker holds it; a glob that begins with `=`, which would look like an id, as the regex that means the same. */
export function pickedTyped(text: string): string {
  if (!isPattern(text)) return pickedId(text);
  return text.startsWith('=') ? `~(?s)${quotedForRegex(text).replaceAll('*', '.*').replaceAll('?', '.')}` : text;
}

/** The same as the API takes it. */
export function patternOf(picked: string): string | { exact: string } {
  return picked.startsWith('=') ? { exact: picked.slice(1) } : picked;
}

/** The id or pattern to show. */
export function pickedText(picked: string): string {
  return picked.startsWith('=') ? picked.slice(1) : picked;
}

/** Tags as a list for the URL, each `name=value` with the name encoded, since names may hold `=`. */
export function tagsToList(tags: Record<string, string>): string[] {
  return Object.entries(tags).map(([name, value]) => `${encodeURIComponent(name)}=${value}`);
}

export function tagsFromList(list: string[]): Record<string, string> {
  const tags: [string, string][] = [];
  for (const one of list) {
    const cut = one.indexOf('=');
    if (cut <= 0) continue;
    try {
      tags.push([decodeURIComponent(one.slice(0, cut)), one.slice(cut + 1)]);
    } catch {
      continue; // a URL that somebody cut: this tag is not one
    }
  }
  return Object.fromEntries(tags); // an assignment would lose a tag called __proto__
}
