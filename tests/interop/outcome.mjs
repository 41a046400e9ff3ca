// Apart from support.mjs, for this runs in a browser too.

/**
 * What a call came to, as plain data, so that the same call by the same library to proxy and node can be compared.
 * Addresses of the server and ids of the request differ by nature; all else in an error must be the same.
 */
export const outcome = (promise) =>
  promise.then(
    (value) => ({ value: plain(value) }),
    (error) => ({ error: plain(error) }),
  );

/** Below `limits.max_in_flight`, which is 256 unless set. */
const AT_ONCE = 200;

/** What each of many calls came to, in their order. */
export async function many(conn, calls) {
  const answers = [];
  const left = calls.entries();
  const work = async () => {
    for (const [at, [method, params]] of left) answers[at] = await outcome(conn.call(method, params));
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  return answers;
}

const DIFFER_BY_NATURE = new Set(["stack", "request", "payload", "url", "id"]);

function plain(value, depth = 0) {
  if (typeof value === "bigint") return `${value}n`;
  if (typeof value === "string") return value.replace(/(https?|wss?):\/\/127\.0\.0\.1:\d+\/?/g, "<url>");
  if (value === null || typeof value !== "object" || depth > 12) return typeof value === "function" ? undefined : value;
  if (Array.isArray(value)) return value.map((item) => plain(item, depth + 1));
  if (value instanceof Error) {
    const { name, message, ...rest } = { name: value.name, message: value.message, cause: value.cause, ...value };
    const kept = Object.entries(rest).filter(([key]) => !DIFFER_BY_NATURE.has(key));
    return { name, message: plain(message), ...plain(Object.fromEntries(kept), depth + 1) };
  }
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, plain(item, depth + 1)]));
}
