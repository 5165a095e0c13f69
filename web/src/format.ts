/** Numbers for people. Grouping and the decimal point are those of English everywhere, as in the API's own texts. */

const GROUPED = new Intl.NumberFormat('en-US', { maximumFractionDigits: 0 });
const NONE = '–';
/** By how many digits count: to make one takes longer than to use it a hundred times. */
const SIGNIFICANT = new Map<number, Intl.NumberFormat>();

function significant(digits: number): Intl.NumberFormat {
  const made = SIGNIFICANT.get(digits) ?? new Intl.NumberFormat('en-US', { maximumSignificantDigits: digits });
  SIGNIFICANT.set(digits, made);
  return made;
}

function known(value: number | null | undefined): value is number {
  return typeof value === 'number' && Number.isFinite(value);
}

/** A figure to read: six digits that count. The exact one is String(value). */
export function formatNumber(value: number | null | undefined, digits = 6): string {
  if (!known(value)) return value === undefined || value === null || Number.isNaN(value) ? NONE : String(value);
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size >= 1e15 || size < 1e-6) return value.toExponential(Math.max(0, digits - 1)).replace(/\.?0+e/, 'e');
  if (Number.isInteger(value)) return GROUPED.format(value);
  return significant(Math.max(digits, Math.floor(Math.log10(size)) + 1)).format(value);
}

/** Of things: `12,345`. */
export function formatCount(value: number | null | undefined): string {
  return known(value) ? GROUPED.format(value) : NONE;
}

function scaled(value: number, base: number, units: string[]): string {
  let rest = value;
  let unit = 0;
  while (Math.abs(rest) >= base * 0.9995 && unit < units.length - 1) {
    rest /= base;
    unit += 1;
  }
  const text = unit === 0 ? String(Number(rest.toPrecision(3))) : String(Number(rest.toPrecision(3)));
  return `${text}${units[unit] ?? ''}`;
}

/** `512 B`, `1.5 KiB`, `20 MiB`. */
export function formatBytes(value: number | null | undefined): string {
  return known(value) ? scaled(value, 1024, [' B', ' KiB', ' MiB', ' GiB', ' TiB', ' PiB']) : NONE;
}

/** Short: `999`, `1.2k`, `3.4M`. */
export function formatShort(value: number | null | undefined): string {
  return known(value) ? scaled(value, 1000, ['', 'k', 'M', 'G', 'T']) : NONE;
}

/** Per second: `1.2k/s`. */
export function formatRate(perSecond: number | null | undefined): string {
  return known(perSecond) ? `${formatShort(perSecond)}/s` : NONE;
}
