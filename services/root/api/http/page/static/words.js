// Numbers as people read them.

const SIZES = ["B", "KiB", "MiB", "GiB", "TiB"];

/** 1536 -> "1.5 KiB". */
export function bytes(count) {
  let size = Number(count);
  let unit = 0;
  while (size >= 1024 && unit < SIZES.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${digits(size)} ${SIZES[unit]}`;
}

/** Three digits that count. */
export function digits(value) {
  if (value >= 100 || Number.isInteger(value)) return whole(Math.round(value));
  return value.toFixed(value >= 10 ? 1 : 2).replace(/\.?0+$/, "");
}

/** 12345 -> "12,345". */
export function whole(value) {
  return Number(value).toLocaleString("en");
}

/** A time span: "180 µs", "2.4 ms", "12 s", "3 min". */
export function span(seconds) {
  if (seconds < 1e-3) return `${digits(seconds * 1e6)} µs`;
  if (seconds < 1) return `${digits(seconds * 1e3)} ms`;
  if (seconds < 120) return `${digits(seconds)} s`;
  return `${whole(Math.round(seconds / 60))} min`;
}

/** A share of 1: "37 %". */
export function percent(share) {
  return `${Math.round(100 * share)} %`;
}

/** "1 worker", "2 workers". */
export function counted(count, word) {
  return `${whole(count)} ${word}${count === 1 ? "" : "s"}`;
}

/** Time of day. */
export function clock(milliseconds) {
  return new Date(milliseconds).toLocaleTimeString("en-GB");
}
