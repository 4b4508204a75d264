// The KV cache beside the conversation: now, drawn to scale, over time, and what was freed.

import { h, setText } from "./dom.js";
import { bytes, bytesOf, change, count } from "./format.js";
import { Chart } from "./chart.js";
import { Strip } from "./strip.js";
import { curves } from "./curves.js";

const COUNTERS = [
  ["peak", "Peak"], ["freed", "Freed"], ["folded", "Thoughts folded"],
  ["gists", "Gist tokens"], ["memory", "KV memory"], ["speed", "Speed"],
];

export class Panel {
  constructor(host) {
    this.host = host;
    this.axis = null;
    this.chart = new Chart();
    this.strip = new Strip();
    this.ours = h("b", { class: "ours" });
    this.full = h("b", { class: "full" });
    this.oursName = h("span");
    this.fullName = h("span");
    this.saving = h("span", { class: "saving" });
    this.values = Object.fromEntries(COUNTERS.map(([key]) => [key, h("dd")]));
    this.axes = h("div", { class: "axes", role: "group", "aria-label": "Horizontal axis" },
      ["tokens", "seconds"].map((axis) => h("button", { type: "button", "data-axis": axis, onclick: () => this.#choose(axis) }, axis)));
    host.append(
      h("div", { class: "numbers" },
        h("h2", {}, "KV cache"),
        h("div", { class: "big" },
          h("p", {}, this.ours, this.oursName), h("p", {}, this.full, this.fullName), this.saving),
        this.strip.element,
        h("dl", { class: "counters" }, COUNTERS.map(([key, name]) => h("div", { "data-counter": key }, h("dt", {}, name), this.values[key])))),
      h("div", { class: "drawing" }, h("div", { class: "above" }, h("h3", {}, "KV tokens held"), this.axes), this.chart.element));
  }

  /** Show a turn: its runs, from now on at every update. */
  open(runs, bytesPerToken) {
    this.runs = runs;
    this.bytesPerToken = bytesPerToken;
    this.axis = runs.length > 1 ? "seconds" : "tokens";
    this.strip.reset();
    this.host.hidden = false;
    this.host.classList.toggle("pair", runs.length > 1);
    this.host.classList.toggle("plain", !runs.some((run) => run.compression));
    this.update();
  }

  #choose(axis) {
    this.axis = axis;
    this.update();
  }

  update() {
    if (!this.runs) return;
    for (const button of this.axes.children) button.setAttribute("aria-pressed", String(button.dataset.axis === this.axis));
    const folding = this.runs.find((run) => run.compression);
    const plain = this.runs.find((run) => !run.compression);
    const run = folding ?? plain;
    const beside = folding && plain;
    const full = plain ? plain.now.live : run.now.full;
    setText(this.ours, count(run.now.live));
    setText(this.oursName, folding ? "tokens held" : "tokens held, full CoT");
    setText(this.full, count(full));
    setText(this.fullName, beside ? "full CoT" : "full CoT would hold");
    setText(this.saving, folding && full > run.now.live ? change(run.now.live, full) : "");
    this.strip.show(run, beside ? plain : null);
    const held = run.now.live * this.bytesPerToken;
    const values = {
      peak: `${count(run.peak)}${folding ? ` of ${count(beside ? plain.peak : run.now.full)}` : ""}`,
      freed: count(run.freed), folded: count(run.folded), gists: count(run.gists),
      memory: !held ? "–" : folding ? bytesOf(held, full * this.bytesPerToken) : bytes(held),
      speed: run.seconds > 0.3 ? `${count(run.written / run.seconds)} tok/s` : "–",
    };
    for (const [key] of COUNTERS) setText(this.values[key], values[key]);
    this.chart.show(curves(this.runs, this.axis, this.bytesPerToken));
  }
}
