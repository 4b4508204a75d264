// Numbers for people.

const whole = new Intl.NumberFormat("en");

export const count = (n) => whole.format(Math.round(n));

export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) { n /= 1024; unit += 1; }
  return `${n < 10 && unit > 0 ? n.toFixed(1) : Math.round(n)} ${units[unit]}`;
}

/** Return "149 of 381 KiB"; both units where they differ. */
export function bytesOf(part, whole) {
  const [a, unit] = bytes(part).split(" "), all = bytes(whole);
  return all.endsWith(` ${unit}`) ? `${a} of ${all}` : `${a} ${unit} of ${all}`;
}

/** Return "−65 %" for 35 of 100; an empty string when there is nothing to compare. */
export function change(ours, full) {
  if (!full || ours === full) return "";
  const percent = Math.round(100 * (ours / full - 1));
  return percent === 0 ? "" : `${percent < 0 ? "−" : "+"}${Math.abs(percent)} %`;
}

export const seconds = (s) => (s < 10 ? `${s.toFixed(1)} s` : `${Math.round(s)} s`);
