import { describe, expect, it } from 'vitest';
import { pointValues, type Values } from '../../chart/values';
import { keyOf, type Line } from './lines';
import { bucketsCsv, csvField, fileName, pointsCsv, rowsOf } from './table';

const A: Line = { device: 'a', metric: 'm', tags: {}, side: 'left', hidden: false };
const B: Line = { device: '"b",\n', metric: 'm', tags: { x: '1' }, side: 'left', hidden: false };
const WINDOW = { startMs: 0, endMs: 100 };

const at = (nanos: string) => `1970-01-01T00:00:00.${nanos}Z`;

describe('rows', () => {
  it('come by time, then by line, without hidden lines and what is outside the window', () => {
    const values = new Map([[keyOf(A), pointValues([0, 50, 101], [1, 2, 3])], [keyOf(B), pointValues([-1, 0, 50], [7, 8, 9])]]);
    expect(rowsOf([A, B], values, WINDOW).map(({ timeMs, avg }) => [timeMs, avg])).toEqual([[0, 1], [0, 8], [50, 2], [50, 9]]);
    expect(rowsOf([{ ...A, hidden: true }, B], values, WINDOW)).toHaveLength(2);
  });
});

describe('CSV', () => {
  it('of points has a value a row, exact, with times of RFC 3339', () => {
    const points = new Map([[keyOf(A), { times: [at('001500001'), at('001500002')], values: [0.1, 3] }], [keyOf(B), { times: [at('001500001')], values: [2] }]]);
    expect(pointsCsv([A, { ...B, device: 'b' }], new Map([...points, [keyOf({ ...B, device: 'b' }), points.get(keyOf(B))!]]))).toBe([
      'time,device_id,metric_name,tags,value',
      '1970-01-01T00:00:00.001500001Z,a,m,{},0.1',
      '1970-01-01T00:00:00.001500001Z,b,m,"{""x"":""1""}",2',
      '1970-01-01T00:00:00.001500002Z,a,m,{},3', ''].join('\r\n'));
  });

  it('of buckets has their figures', () => {
    const bucket: Values = { bucketMs: 10, times: [20], min: [1], avg: [2], max: [3], counts: [4] };
    expect(bucketsCsv([A], new Map([[keyOf(A), bucket]]), WINDOW).split('\r\n')).toEqual([
      'time,device_id,metric_name,tags,min,avg,max,count', '1970-01-01T00:00:00.020000000Z,a,m,{},1,2,3,4', '']);
  });

  it('quotes what needs it', () => {
    expect(pointsCsv([B], new Map([[keyOf(B), { times: [at('001000000')], values: [5] }]]))).toContain('Z,"""b"",\n",m,"{""x"":""1""}",5\r\n');
    expect(csvField('plain')).toBe('plain');
  });

  it('holds no formula of a spreadsheet, whatever a device is called', () => {
    const names = ['=1+1', '+1', '-1', '@a', '\t=1', "'=1", "'a", 'a=1'];
    const lines = names.map((device): Line => ({ ...A, device }));
    const points = new Map(lines.map((line) => [keyOf(line), { times: [at('001000000')], values: [-5] }]));
    const fields = pointsCsv(lines, points).split('\r\n').slice(1, -1).map((row) => row.split(','));
    expect(fields.map((row) => row[1])).toEqual(["'=1+1", "'+1", "'-1", "'@a", "'\t=1", "''=1", "'a", 'a=1']);
    expect(fields.map((row) => row.at(-1))).toEqual(names.map(() => '-5'));
  });

  it('gets a name that every disk takes', () => {
    expect(fileName([{ ...A, device: '../a/b:c' }], WINDOW, 'csv')).toBe('_a_b_c-m-1970-01-01T000000.csv');
    expect(fileName([A, { ...B, hidden: true }, B], WINDOW, 'png')).toBe('a-m-and-1-more-1970-01-01T000000.png');
    expect(fileName([], WINDOW, 'png')).toBe('chart-1970-01-01T000000.png');
  });
});
