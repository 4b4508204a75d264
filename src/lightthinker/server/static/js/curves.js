// Runs -> what the chart shows: KV tokens against tokens written, or against the shared clock.

import { bytes, count, plural, seconds } from "./format.js";

/**
 * @param runs One run, or the same question's runs side by side.
 * @param axis "tokens" or "seconds".
 * @param bytesPerToken Of KV cache; 0 when unknown.
 */
export function curves(runs, axis, bytesPerToken) {
  const x = axis === "seconds" ? (p) => p.seconds : (p, run) => Math.max(0, p.full - run.prompt);
  const line = (run, name, kind, y) => ({
    name, kind, area: true, points: run.curve.map((p) => ({ x: x(p, run), y: y(p) })),
  });
  const series = [];
  for (const run of runs) {
    if (runs.length === 1 || !run.compression) series.push(line(run, "full CoT", "full", (p) => p.full));
    if (run.compression) series.push(line(run, "LightThinker", "ours", (p) => p.live));
  }
  series.sort((a, b) => a.kind.localeCompare(b.kind)); // full CoT behind
  return {
    series,
    xLabel: axis === "seconds" ? "seconds" : "tokens written",
    minX: axis === "seconds" ? 0.5 : 32,
    formatX: axis === "seconds" ? (v) => String(v) : count,
    describeX: axis === "seconds" ? seconds : (v) => `${count(v)} written`,
    formatTip: (y) => (bytesPerToken ? `${count(y)} · ${bytes(y * bytesPerToken)}` : count(y)),
    summary: summary(runs, axis),
  };
}

function summary(runs, axis) {
  const parts = runs.map((run) => {
    const name = run.compression ? "with compression" : "full chain-of-thought";
    return `${name} ${count(run.now.live)} KV tokens now, ${count(run.peak)} at most`;
  });
  if (runs.length === 1 && runs[0].compression) {
    parts.push(`full chain-of-thought would hold ${plural(runs[0].now.full, "token")}`);
  }
  return `KV cache over ${axis === "seconds" ? "time" : "tokens written"}: ${parts.join("; ")}.`;
}
