// States of the last minutes, and what follows from two of them: rates, and latencies of a while.

/** States that are kept: with one a second, five minutes. */
export const KEPT = 300;

/** Milliseconds of which a shown rate is the mean. */
const MEAN = 10_000;

const sum = (counts) => Object.values(counts).reduce((total, count) => total + count, 0);

/** Share of the samples between two states' buckets, in milliseconds; `null` without a sample. */
export function quantile(before, after, share) {
  const counts = after.map(({ count }, at) => count - (before[at]?.count ?? 0));
  const all = counts.at(-1) ?? 0;
  if (all <= 0) return null;
  const wanted = share * all;
  let [from, below] = [0, 0];
  for (const [at, { upToMs }] of after.entries()) {
    if (counts[at] >= wanted) {
      // Beyond the last bound nothing is known but the bound.
      if (upToMs === null) return from;
      const inside = counts[at] - below;
      return inside > 0 ? from + ((upToMs - from) * (wanted - below)) / inside : upToMs;
    }
    [from, below] = [upToMs ?? from, counts[at]];
  }
  return from;
}

/** States in the order of their arrival. */
export class History {
  states = [];

  get newest() {
    return this.states.at(-1);
  }

  add(state) {
    // A restart begins all counters anew.
    if (this.newest && state.uptimeMs < this.newest.uptimeMs) this.states = [];
    this.states.push(state);
    if (this.states.length > KEPT) this.states.shift();
  }

  /** Newest state that is at least so old, or else the oldest. */
  ago(ms, from = this.states.length - 1) {
    const until = this.states[from].atMs - ms;
    for (let at = from - 1; at >= 0; at--) if (this.states[at].atMs <= until) return this.states[at];
    return this.states[0];
  }

  /** Rate of a counter a second, as the mean of the last seconds; `null` with a single state. */
  rate(read, ms = MEAN) {
    return this.#between(this.ago(ms), this.newest, read);
  }

  #between(before, after, read) {
    const seconds = (after.atMs - before.atMs) / 1000;
    return seconds > 0 ? Math.max(0, read(after) - read(before)) / seconds : null;
  }

  /** Difference of a counter within the last while. */
  within(ms, read) {
    return Math.max(0, read(this.newest) - read(this.ago(ms)));
  }

  /** Points of a plot: time, and the rate of each counter between a state and the one before. */
  points(...reads) {
    const points = [];
    for (let at = 1; at < this.states.length; at++) {
      const [before, after] = [this.states[at - 1], this.states[at]];
      points.push({ at: after.atMs, values: reads.map((read) => this.#between(before, after, read)) });
    }
    return points;
  }

  /** Points of a plot: time, and these shares of the latencies of the seconds before. */
  latencies(shares) {
    return this.states.slice(1).map((state, at) => {
      const before = this.ago(MEAN, at + 1);
      const of = (share) => quantile(before.latency.buckets, state.latency.buckets, share);
      return { at: state.atMs, values: shares.map(of) };
    });
  }
}

export const deliveries = (state) => sum(state.deliveries);
export const requests = (state) => sum(state.requests);
export const refusals = (state) => sum(state.refusals);
export const subscriptions = (state) => sum(state.subscriptions);
