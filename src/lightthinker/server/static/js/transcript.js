// The conversation as a file: JSON with everything, or one HTML page without scripts.
//
// The page's body is built from elements and text nodes and then serialised, so that text stays
// text; its policy forbids scripts and network besides.

import { h, svg } from "./dom.js";
import { change, count, plural, seconds } from "./format.js";
import { Chart } from "./chart.js";
import { curves } from "./curves.js";
import { MarkdownView } from "./markdown.js";
import { gistMarks, spoken } from "./runview.js";

export const FORMAT = "lightthinker-transcript/1";

export function asData(turns, about) {
  return {
    format: FORMAT,
    exported_at: new Date().toISOString(),
    ...about,
    turns: turns.map(({ question, runs }) => ({
      question,
      runs: runs.map((run) => ({
        compression: run.compression,
        state: run.state,
        finish_reason: run.finishReason,
        error: run.error || null,
        seconds: run.seconds,
        thoughts: run.thoughts.map((t) => ({
          text: t.text, num_tokens: t.numTokens ?? null, num_gists: t.numGists ?? null, tokens_freed: t.tokensFreed ?? null,
        })),
        answer: run.answer,
        usage: run.usage,
        kv_curve: run.curve.map((p) => ({ seconds: p.seconds, live_tokens: p.live, full_cot_tokens: p.full })),
      })),
    })),
  };
}

/** Return the HTML text; fetches our own style sheets to put them inside. */
export async function asPage(turns, about) {
  const sheets = await Promise.all(["theme", "run"].map(async (name) =>
    (await fetch(new URL(`static/css/${name}.css`, document.baseURI))).text()));
  const body = h("body", { class: "transcript" },
    h("h1", {}, "LightThinker transcript"),
    h("p", { class: "facts" }, `${about.model} · ${new Date().toLocaleString()}`),
    ...turns.map((turn) => turnPage(turn, about.kv_bytes_per_token)));
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>LightThinker transcript</title>
<style>
${sheets.join("\n")}
</style>
</head>
${body.outerHTML}
</html>
`;
}

function turnPage({ question, runs }, bytesPerToken) {
  return h("article", { class: "turn" },
    h("p", { class: "asked" }, question),
    runs.some((run) => run.curve.length) && drawing(runs, bytesPerToken),
    h("div", { class: `runs ${runs.length > 1 ? "two" : ""}` }, runs.map(runPage)));
}

function runPage(run) {
  const full = run.costs?.full_cot_peak_tokens ?? run.now.full;
  const cost = `${plural(run.peak, "KV token")} at most${run.compression ? `, full CoT ${count(full)} (${change(run.peak, full) || "the same"})` : ""} · ${seconds(run.seconds)}`;
  return h("section", { class: `run ${run.compression ? "ours" : "full"}` },
    h("header", { class: "title" }, h("i"), h("h2", {}, run.compression ? "Thoughts fold" : "Full chain-of-thought")),
    h("div", { class: "thoughts" }, run.thoughts.map((thought) =>
      h("details", { class: `thought ${thought.state}`, open: thought.state !== "folded" },
        h("summary", { class: "head", "aria-label": spoken(thought) },
          h("span", { class: "number" }, thought.index + 1), h("span", { class: "words" }, thought.text.trim().slice(0, 160)),
          thought.state === "folded" && h("span", { class: "fate" }, `${count(thought.numTokens)} tokens → `, gistMarks(thought.numGists), ` ${plural(thought.numGists, "gist")}`)),
        h("p", { class: "text" }, thought.text.trim())))),
    run.answer.trim() && answerPage(run.answer.trim()),
    h("p", { class: "costs" }, { stopped: "Stopped. ", failed: `${run.error} ` }[run.state] ?? "", run.curve.length ? cost : ""));
}

function answerPage(text) {
  const words = h("div", { class: "text" });
  new MarkdownView(words).update(text);
  return h("div", { class: "answer" }, words);
}

function drawing(runs, bytesPerToken) {
  const chart = new Chart();
  const room = h("div", { class: "offstage", "aria-hidden": "true" }, chart.element);
  document.body.append(room);
  chart.show(curves(runs, runs.length > 1 ? "seconds" : "tokens", bytesPerToken));
  room.remove();
  chart.svg.removeAttribute("tabindex");
  chart.svg.prepend(svg("title", {}, chart.svg.getAttribute("aria-label")));
  return h("div", { class: "chart" }, chart.legend, chart.svg);
}

/** Hand a file to the browser's downloads. */
export function download(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
