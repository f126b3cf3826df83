/** Parse GET /metrics and compute figures from one or two samplings. */

/** @typedef {{name: string, labels: Record<string, string>, value: number}} Sample */

/**
 * @param {string} text Prometheus' text format
 * @returns {Sample[]}
 */
export function parse(text) {
  return text
    .split("\n")
    .filter((line) => line && !line.startsWith("#"))
    .flatMap((line) => {
      const match = line.match(/^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/);
      if (!match) return [];
      const labels = Object.fromEntries(
        [...(match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, name, value]) => [name, value]),
      );
      return [{ name: match[1], labels, value: Number(match[3]) }];
    });
}

/**
 * Return the sum of all samples of this name whose labels are chosen.
 * @param {Sample[]} samples
 * @param {string} name
 * @param {(labels: Record<string, string>) => boolean} [chosen]
 */
export function total(samples, name, chosen = () => true) {
  return samples.reduce((sum, sample) => sum + (sample.name === name && chosen(sample.labels) ? sample.value : 0), 0);
}

/**
 * Return a quantile of a histogram's observations between two samplings, interpolated within its bucket; null if none.
 * @param {Sample[]} before
 * @param {Sample[]} after
 * @param {string} name without `_bucket`
 * @param {number} share 0..1
 * @param {(labels: Record<string, string>) => boolean} [chosen]
 * @returns {number | null}
 */
export function quantile(before, after, name, share, chosen = () => true) {
  const bounds = [...new Set(after.filter((item) => item.name === `${name}_bucket`).map((item) => item.labels.le))];
  const buckets = bounds
    .map((le) => {
      const of = (/** @type {Sample[]} */ samples) =>
        total(samples, `${name}_bucket`, (labels) => labels.le === le && chosen(labels));
      return { le: le === "+Inf" ? Infinity : Number(le), count: of(after) - of(before) };
    })
    .sort((a, b) => a.le - b.le);
  const all = buckets.at(-1)?.count ?? 0;
  if (all <= 0) return null;
  const at = buckets.findIndex((bucket) => bucket.count >= all * share);
  const [below, bucket] = [buckets[at - 1] ?? { le: 0, count: 0 }, buckets[at]];
  if (bucket.le === Infinity) return below.le;
  return below.le + ((bucket.le - below.le) * (all * share - below.count)) / (bucket.count - below.count || 1);
}
