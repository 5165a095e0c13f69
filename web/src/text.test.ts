import { describe, expect, test } from 'vitest';
import { asSearch, literally, patternOf, pickedId, pickedText, pickedTyped, tagsFromList, tagsText, tagsToList, visible } from './text';

describe('ids to look at', () => {
  test('what cannot be seen is written out', () => {
    expect(visible('a\u202eb')).toBe('a⟨U+202E⟩b');
    expect(visible('\u0000\n\u200b\u2066')).toBe('⟨U+0000⟩⟨U+000A⟩⟨U+200B⟩⟨U+2066⟩');
    expect(visible(' a  ')).toBe('␣a␣␣');
    expect(visible('\u{e0041}')).toBe('⟨U+E0041⟩');
  });

  test('letters of any script, quotes and HTML stay', () => {
    for (const id of ['<b>"x\'</b>', 'датчик', '传感器', 'مقياس', 'a b', '🌡']) expect(visible(id)).toBe(id);
  });
});

describe('ids and patterns', () => {
  test.each(['a', 'a*b', '~x', '=a', 'a?', '=~*', '==', ''])('%j as it was chosen is taken literally', (id) => {
    const pattern = patternOf(pickedId(id));
    expect(typeof pattern === 'string' ? pattern : pattern.exact).toBe(id);
    expect(pickedText(pickedId(id))).toBe(id);
    if (typeof pattern === 'string') expect(literally(id)).toBe(id);
  });

  test('what was typed is a pattern', () => {
    expect(patternOf('line1/*')).toBe('line1/*');
    expect(patternOf('~pump.*')).toBe('~pump.*');
  });

  test('what was typed with a = before it is no id without one', () => {
    expect(patternOf(pickedTyped('=a'))).toEqual({ exact: '=a' });
    expect(patternOf(pickedTyped('a'))).toBe('a');
    expect(patternOf(pickedTyped('line?/*'))).toBe('line?/*');
    expect(patternOf(pickedTyped('=a.?*'))).toBe('~(?s)=a\\...*');
  });

  test('a search is for what contains the text, in capitals or not; patterns stay', () => {
    expect(asSearch('')).toBe('*');
    expect(asSearch('_0777')).toBe('*_0777*');
    expect(asSearch('Pump')).toBe('~(?is).*Pump.*');
    expect(asSearch('a.b(c)[d]{e}|f^$\\+')).toBe('~(?is).*a\\.b\\(c\\)\\[d\\]\\{e\\}\\|f\\^\\$\\\\\\+.*');
    expect(asSearch('line?/*')).toBe('line?/*');
    expect(asSearch('~a|b')).toBe('~a|b');
  });
});

describe('tags', () => {
  test('names with = and % read back the same', () => {
    const tags = { 'a=b': 'c=d', '%': '', room: 'lab 1', 'é&': 'ü' };
    expect(tagsFromList(tagsToList(tags))).toEqual(tags);
  });

  test('what is no tag is left out', () => {
    expect(tagsFromList(['x', '=y', '%zz=1', 'a=1'])).toEqual({ a: '1' });
  });

  test('a tag may be called __proto__', () => {
    expect(Object.entries(tagsFromList(['__proto__=1', 'constructor=2']))).toEqual([['__proto__', '1'], ['constructor', '2']]);
  });

  test('in order of names', () => {
    expect(tagsText({ b: '2', a: '1' })).toBe('a=1, b=2');
    expect(tagsText({})).toBe('');
  });
});
