/** Which screen the part of the URL behind # names. Knows no React: the entry asks it before anything else is here. Pure. */

export const SCREENS = ['query', 'explore', 'live', 'cluster', 'data'] as const;
export type Screen = (typeof SCREENS)[number];

export function splitHash(hash: string): { screen: Screen; search: string } {
  const match = /^#?\/?([a-z]*)(?:\?(.*))?$/s.exec(hash);
  const screen = SCREENS.find((one) => one === match?.[1]) ?? 'query';
  return { screen, search: match?.[2] ?? '' };
}
