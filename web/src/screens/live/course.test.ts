import { describe, expect, it } from 'vitest';
import { BEGINNING, lostWords, MOST_NOTES, moved, noted, readyOf, stateWords } from './course';

const NOW = 1_700_000_000_000;
const gone = { kind: 'lost', reason: 'The connection to the server broke', retryAtMs: NOW + 4000 } as const;

describe('the course of a stream', () => {
  it('says the loss once, however often it is tried, and the return with how long it took', () => {
    let course = moved(BEGINNING, { kind: 'open' }, NOW);
    expect(course.notes).toEqual([]);
    course = moved(course, gone, NOW);
    course = moved(course, { kind: 'connecting' }, NOW + 4000);
    course = moved(course, gone, NOW + 4001);
    course = moved(course, { kind: 'connecting' }, NOW + 11_000);
    course = moved(course, { kind: 'open' }, NOW + 12_000);
    expect(course.notes.map((note) => note.text)).toEqual([
      'Connected again after 12 s. Points of that time are not in the small charts.',
      'Connection lost: The connection to the server broke',
    ]);
    expect(course.lostSinceMs).toBeNull();
  });

  it('says so when it never came to be', () => {
    expect(moved(BEGINNING, gone, NOW).notes[0]?.text).toBe('Cannot connect: The connection to the server broke');
  });

  it('is told as a sentence', () => {
    expect(stateWords(BEGINNING, NOW).text).toBe('Connecting');
    const lost = moved(moved(BEGINNING, { kind: 'open' }, NOW), gone, NOW);
    expect(stateWords(lost, NOW).text).toBe('The connection to the server broke. Trying again in 4 s');
    expect(stateWords(lost, NOW + 9000).text).toContain('in 1 s');
    expect(stateWords(moved(lost, { kind: 'connecting' }, NOW), NOW + 7000).text).toBe('Connecting again, lost for 7 s');
    expect(stateWords(moved(lost, { kind: 'open' }, NOW), NOW)).toEqual({ tone: 'ok', text: 'Live' });
  });

  it('remembers only the last notes', () => {
    let course = BEGINNING;
    for (let at = 0; at < MOST_NOTES + 9; at += 1) course = noted(course, { atMs: at, tone: 'warn', text: String(at) });
    expect(course.notes).toHaveLength(MOST_NOTES);
    expect(course.notes[0]?.text).toBe(String(MOST_NOTES + 8));
  });
});

describe('events', () => {
  it('are put into words', () => {
    expect(lostWords({ node: 'ing1', messages: 3, reason: 'restarted' })).toBe(
      'Points of ing1 were missed, at most 3 messages: restarted',
    );
    expect(lostWords({ node: 'ing1', messages: null, reason: '' })).toContain('an unknown number of messages');
    expect(lostWords(null)).toContain('a node');
  });

  it('tell which nodes are heard', () => {
    expect(readyOf({ nodes: ['ing1'], missing: ['ing2', 3] })).toEqual({ nodes: ['ing1'], missing: ['ing2'] });
    expect(readyOf('x')).toEqual({ nodes: [], missing: [] });
  });
});
