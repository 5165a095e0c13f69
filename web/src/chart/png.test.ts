import { describe, expect, it } from 'vitest';
import { legendName } from './png';
import { noValues, type ChartLine, type Side } from './values';

function line(label: string, side: Side): ChartLine {
  return { key: label, label, side, colour: '#000000', dash: [], faint: false, values: noValues() };
}

describe('the names below a picture', () => {
  it('say which are on the right axis where both axes are used', () => {
    const [a, b, c] = [line('a', 'left'), line('b', 'right'), line('c', 'right')];
    expect([a, b].map((one) => legendName(one, [a, b]))).toEqual(['a', 'b (right axis)']);
    expect([b, c].map((one) => legendName(one, [b, c]))).toEqual(['b', 'c']);
  });
});
