/** How fields of a status, which each version may have more of, are looked at. */

export type Fields = Record<string, unknown>;

/** A number of a status, null where it has none of that name. */
export function figure(of: Fields | undefined, name: string): number | null {
  const value = of?.[name];
  return typeof value === 'number' && Number.isFinite(value) ? value : null;
}

/** A text of a status, '' where it has none of that name. */
export function words(of: Fields | undefined, name: string): string {
  const value = of?.[name];
  return typeof value === 'string' ? value : '';
}

/** A map within a status, empty where it has none of that name. */
export function part(of: Fields | undefined, name: string): Fields {
  const value = of?.[name];
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Fields) : {};
}

/** A list of texts within a status. */
export function texts(of: Fields | undefined, name: string): string[] {
  const value = of?.[name];
  return Array.isArray(value) ? value.filter((each): each is string => typeof each === 'string') : [];
}
