// Numbers, bytes, times and hashes as short text.

const NONE = "–";
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

const is = (value) => value !== null && value !== undefined && Number.isFinite(value);

/** Whole number with separators. */
export const count = (value) => (is(value) ? whole.format(value) : NONE);

/** Number in three digits, with a suffix from ten thousand on. */
export function brief(value) {
  if (!is(value)) return NONE;
  for (const [size, suffix] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (value >= size) {
      const unit = size === 1e4 ? 1e3 : size;
      return `${digits(value / unit)}${suffix}`;
    }
  }
  return value >= 100 ? whole.format(value) : digits(value);
}

function digits(value) {
  if (value === 0) return "0";
  if (value >= 100) return value.toFixed(0);
  if (value >= 10) return value.toFixed(1).replace(/\.0$/, "");
  return value.toFixed(value < 0.1 ? 2 : 1).replace(/\.?0+$/, "") || "0";
}

/** Bytes in powers of ten. */
export function bytes(value) {
  if (!is(value)) return NONE;
  for (const [size, unit] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (value >= size) return `${digits(value / size)} ${unit}`;
  }
  return `${Math.round(value)} B`;
}

/** Duration in milliseconds, with two units at most. */
export function duration(ms) {
  if (!is(ms)) return NONE;
  if (ms < 10) return `${digits(ms)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 60) return `${seconds < 10 ? digits(seconds) : Math.floor(seconds)} s`;
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const at = parts.findIndex(([size]) => seconds >= size);
  const [[size, unit], [less, lesser]] = [parts[at], parts[at + 1]];
  const rest = Math.floor((seconds % size) / less);
  return `${Math.floor(seconds / size)} ${unit}${rest ? ` ${rest} ${lesser}` : ""}`;
}

/** Time of day. */
export const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");

/** Date and time of day. */
export const date = (ms) => new Date(ms).toLocaleString("sv-SE");

/** First and last digits of a hash. */
export const shortHash = (hash) => (hash?.length > 14 ? `${hash.slice(0, 8)}…${hash.slice(-4)}` : (hash ?? NONE));

/** Words of a name in camel or snake case. */
export const words = (name) => name.replace(/_/g, " ").replace(/([a-z])([A-Z])/g, (_, a, b) => `${a} ${b.toLowerCase()}`);

export { NONE };
