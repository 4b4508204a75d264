// A line chart of KV tokens, drawn as SVG. Knows series of {x, y}, nothing of models.
//
// Series: {name, kind: "ours" | "full", points, area}. Points ascend in x.

import { h, svg } from "./dom.js";
import { count } from "./format.js";

const MARGIN = { top: 14, right: 14, bottom: 34, left: 44 };
const MAX_POINTS = 1200;

export class Chart {
  constructor() {
    this.svg = svg("svg", { class: "plot", role: "img", tabindex: "0" });
    this.tip = h("div", { class: "tip", hidden: true });
    this.legend = h("ul", { class: "legend" });
    this.element = h("div", { class: "chart" }, this.legend, h("div", { class: "canvas" }, this.svg, this.tip));
    this.at = null;
    this.data = { series: [], xLabel: "", describe: null };
    this.svg.addEventListener("pointermove", (e) => this.#point(e.clientX));
    this.svg.addEventListener("pointerdown", (e) => this.#point(e.clientX));
    this.svg.addEventListener("pointerleave", () => this.#pick(null));
    this.svg.addEventListener("blur", () => this.#pick(null));
    this.svg.addEventListener("keydown", (e) => this.#key(e));
    new ResizeObserver(() => this.#draw()).observe(this.svg);
  }

  /** @param data {series, xLabel, summary, formatX, formatTip(y)} */
  show(data) {
    this.data = data;
    this.#draw();
  }

  #draw() {
    const { series, xLabel, summary } = this.data;
    const width = this.svg.clientWidth, height = this.svg.clientHeight;
    if (!width || !height) return;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("aria-label", summary ?? "");
    this.plot = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
    const points = series.flatMap((s) => s.points);
    this.maxX = Math.max(this.data.minX ?? 1, ...points.map((p) => p.x));
    const top = Math.max(64, ...points.map((p) => p.y));
    const yTicks = ticks(top, Math.max(2, Math.floor(this.plot.height / 40)));
    this.maxY = Math.max(yTicks.at(-1), 1.04 * top);
    const xTicks = ticks(this.maxX, Math.max(2, Math.floor(this.plot.width / 72)));
    this.svg.replaceChildren(
      svg("g", { class: "grid" }, yTicks.map((y) => [
        svg("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: this.#y(y), y2: this.#y(y), class: y === 0 ? "base" : null }),
        svg("text", { x: MARGIN.left - 8, y: this.#y(y) + 4, "text-anchor": "end" }, count(y)),
      ])),
      svg("g", { class: "grid" }, xTicks.filter((x) => x > 0 || xTicks.length < 3).map((x) =>
        svg("text", { x: this.#x(x), y: height - MARGIN.bottom + 16, "text-anchor": x === xTicks.at(-1) && this.#x(x) > width - 40 ? "end" : "middle" }, this.data.formatX(x)))),
      svg("text", { class: "axis", x: width - MARGIN.right, y: height - 3, "text-anchor": "end" }, xLabel),
      ...series.map((s) => this.#series(s)),
      (this.mark = svg("g", { class: "cursor" })),
    );
    this.#legend(series);
    this.#pick(this.at);
  }

  #x(x) { return MARGIN.left + (this.plot.width * x) / this.maxX; }
  #y(y) { return MARGIN.top + this.plot.height * (1 - y / this.maxY); }

  #series({ kind, points, area }) {
    if (!points.length) return svg("g");
    const shown = thin(points, MAX_POINTS);
    const line = shown.map((p, i) => `${i ? "L" : "M"}${this.#x(p.x).toFixed(1)} ${this.#y(p.y).toFixed(1)}`).join("");
    const last = shown.at(-1);
    const under = `${line}L${this.#x(last.x).toFixed(1)} ${this.#y(0)}L${this.#x(shown[0].x).toFixed(1)} ${this.#y(0)}Z`;
    return svg("g", { class: `series ${kind}` },
      area && svg("path", { class: "area", d: under }),
      svg("path", { class: "line", d: line }),
      svg("circle", { class: "end", cx: this.#x(last.x), cy: this.#y(last.y), r: 3.5 }));
  }

  #legend(series) {
    const names = series.map((s) => `${s.kind}:${s.name}`).join("|");
    if (this.legend.dataset.names === names) return;
    this.legend.dataset.names = names;
    this.legend.replaceChildren(...series.map((s) =>
      h("li", { class: s.kind }, h("i", { "aria-hidden": "true" }), s.name)));
  }

  #point(clientX) {
    const box = this.svg.getBoundingClientRect();
    const share = (clientX - box.left - MARGIN.left) / (this.plot?.width || 1);
    this.#pick(Math.min(1, Math.max(0, share)) * this.maxX);
  }

  #key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !this.maxX) return;
    event.preventDefault();
    const from = this.at ?? this.maxX;
    this.#pick(Math.min(this.maxX, Math.max(0, from + (step * this.maxX) / 60)));
  }

  #pick(x) {
    this.at = x;
    this.tip.hidden = x === null || !this.data.series.some((s) => s.points.length);
    this.mark?.replaceChildren();
    if (this.tip.hidden || !this.mark) return;
    const near = this.data.series.map((s) => ({ ...s, at: before(s.points, x) })).filter((s) => s.at);
    this.mark.append(
      svg("line", { x1: this.#x(x), x2: this.#x(x), y1: MARGIN.top, y2: MARGIN.top + this.plot.height }),
      ...near.map((s) => svg("circle", { class: s.kind, cx: this.#x(x), cy: this.#y(s.at.y), r: 4 })));
    this.tip.replaceChildren(
      h("b", {}, this.data.describeX(x)),
      ...near.map((s) => h("span", { class: s.kind }, h("i", { "aria-hidden": "true" }), `${s.name} `, h("em", {}, this.data.formatTip(s.at.y)))));
    const half = this.tip.offsetWidth / 2, width = this.svg.clientWidth;
    this.tip.style.left = `${Math.min(width - half, Math.max(half, this.#x(x)))}px`;
  }
}

/** Return round tick values from 0 to at most `max`, about `wanted` of them. */
export function ticks(max, wanted) {
  const rough = max / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const values = [];
  for (let i = 0; i * step <= max * (1 + 1e-9); i += 1) values.push(Number((i * step).toPrecision(6)));
  return values;
}

/** Return the last point at or before x. */
function before(points, x) {
  let low = 0, high = points.length - 1;
  if (high < 0) return null;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (points[middle].x <= x) low = middle; else high = middle - 1;
  }
  return points[low];
}

/** Keep at most about `limit` points: of each bucket its first, lowest, highest and last, so that teeth stay sharp. */
function thin(points, limit) {
  if (points.length <= limit) return points;
  const size = Math.ceil((4 * points.length) / limit);
  const kept = [];
  for (let begin = 0; begin < points.length; begin += size) {
    const bucket = points.slice(begin, begin + size);
    const low = bucket.reduce((a, b) => (b.y < a.y ? b : a));
    const high = bucket.reduce((a, b) => (b.y > a.y ? b : a));
    const chosen = new Set([bucket[0], low, high, bucket.at(-1)]);
    kept.push(...bucket.filter((p) => chosen.has(p)));
  }
  return kept;
}
