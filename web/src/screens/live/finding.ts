/** Which series the server is asked for so that words find those, too, that this screen does not hold. Pure. */

export interface Asking {
  device_id?: string;
  metric_name?: string;
}

/** Of more words the longest are asked for: what comes is looked through for all of them anyway. */
const MOST_WORDS = 3;
/** The server takes no longer expression (docs/http-api.md). */
const MOST_PATTERN = 1000;

/** Every way in which the words may stand in device and metric. `narrowed` is what the stream is narrowed to: it stays. */
export function questionsFor(words: readonly string[], narrowed: Asking): Asking[] {
  const longest = [...words].sort((a, b) => b.length - a.length).slice(0, MOST_WORDS);
  const questions = new Map<string, Asking>();
  for (let split = 0; split < 2 ** longest.length; split += 1) {
    const inDevice = longest.filter((_, at) => split & (1 << at));
    const inMetric = longest.filter((_, at) => !(split & (1 << at)));
    const question = {
      device_id: narrowed.device_id ?? patternOf(inDevice),
      metric_name: narrowed.metric_name ?? patternOf(inMetric),
    };
    questions.set(JSON.stringify(question), question);
  }
  return longest.length === 0 ? [] : [...questions.values()];
}

/** An expression for texts that have all words, in whatever order and case; undefined for no words. */
function patternOf(words: readonly string[]): string | undefined {
  if (words.length === 0) return undefined;
  const all = `~(?is).*(?:${orders(words.map(quoted)).join('|')}).*`;
  return all.length <= MOST_PATTERN ? all : patternOf(words.slice(0, -1));
}

function orders(words: readonly string[]): string[] {
  if (words.length < 2) return [...words];
  return words.flatMap((word, at) => orders(words.filter((_, other) => other !== at)).map((rest) => `${word}.*${rest}`));
}

function quoted(word: string): string {
  return word.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
}
