import { describe, expect, it } from 'vitest';
import { joined, keyOf, labelOf, lineFromText, linesFromTexts, lineToText, looksOf, MOST_LINES, type Line } from './lines';

function line(patch: Partial<Line> = {}): Line {
  return { device: 'sensor_1', metric: 'temperature', tags: {}, side: 'left', hidden: false, ...patch };
}

describe('a line in the URL', () => {
  it('is short where it is plain', () => {
    expect(lineToText(line())).toBe('sensor_1~temperature');
    expect(lineToText(line({ tags: { room: 'lab', floor: '2' }, side: 'right' }))).toBe('sensor_1~temperature~floor=2,room=lab~r');
    expect(lineToText(line({ hidden: true }))).toBe('sensor_1~temperature~~h');
  });

  it.each([
    line({ device: '<b onmouseover="x">&amp;\'', metric: '\u202eevil\u202c' }),
    line({ device: '~a!b,c=d', metric: '!!~~', tags: { '=': ',', '!': '~', 'a,b': '' } }),
    line({ device: 'ä'.repeat(128), metric: '🙂', tags: { __proto__x: 'y' }, side: 'right', hidden: true }),
    line({ device: 'a\nb\tc\\', metric: ' ' }),
  ])('comes back as it was, whatever its ids hold', (one) => {
    expect(lineFromText(lineToText(one))).toEqual(one);
  });

  it('is none where the text is none of ours', () => {
    for (const text of ['', 'a', '~b', 'a~', 'a~b~c', 'a~b~=c', 'a~b~c=d=e', 'a~b~~x', 'a~b~~r~z']) expect(lineFromText(text)).toBeUndefined();
  });

  it('is left out when it is none, and once when it comes twice', () => {
    const text = lineToText(line());
    expect(linesFromTexts([text, 'nonsense', text, 'b~m'])).toEqual([line(), line({ device: 'b', metric: 'm' })]);
  });
});

describe('lines of a chart', () => {
  it('have one key for the same tags in any order', () => {
    expect(keyOf(line({ tags: { a: '1', b: '2' } }))).toBe(keyOf(line({ tags: { b: '2', a: '1' }, side: 'right' })));
    expect(keyOf(line({ device: 'a', metric: 'b c' }))).not.toBe(keyOf(line({ device: 'a b', metric: 'c' })));
  });

  it('are at most so many, and say how many had no room', () => {
    const many = Array.from({ length: MOST_LINES + 3 }, (_, at) => line({ device: `d${at}` }));
    const { lines, unused } = joined([line()], many);
    expect([lines.length, unused]).toEqual([MOST_LINES, 4]);
  });

  it('have names', () => {
    expect(labelOf(line())).toBe('sensor_1 temperature');
    expect(labelOf(line({ tags: { room: 'lab' } }))).toBe('sensor_1 temperature (room=lab)');
  });

  it('look different up to the most there are', () => {
    const looks = Array.from({ length: MOST_LINES }, (_, at) => JSON.stringify(looksOf(at, 8)));
    expect(new Set(looks).size).toBe(MOST_LINES);
  });
});
