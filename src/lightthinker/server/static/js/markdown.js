// Markdown as elements: a small subset that is safe to feed with what a model writes.
//
// Paragraphs (line breaks stay), headings, lists, fenced code, tables and rules; bold, italics and
// code. All else stays the text it is: links, HTML, and LaTeX, inside which nothing is marked. A
// star or underscore next to a word, number or bracket is arithmetic or a name, not emphasis. Text
// becomes text nodes only, and the work grows with its length, whatever is in it.

import { h } from "./dom.js";

const MAX_DEPTH = 6;
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.+)$/;
const RULE = /^ {0,3}(?:(?:\* *){3,}|(?:- *){3,}|(?:_ *){3,})$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:[ \t]+(.*)|)$/;
const PLAIN = /[^\\`*_$]+/y;
const MATH = { "$$": "$$", "\\[": "\\]", "\\(": "\\)" };

/** Shows a text that grows: blocks that have not changed keep their elements. */
export class MarkdownView {
  constructor(element) {
    this.element = element;
    this.text = "";
    this.sources = [];
  }

  update(text) {
    if (text === this.text) return;
    this.text = text;
    const blocks = split(text.split("\n"), 0);
    const sources = blocks.map((block) => block.lines.join("\n"));
    let same = 0;
    while (same < sources.length && sources[same] === this.sources[same]) same += 1;
    while (this.element.childElementCount > same) this.element.lastElementChild.remove();
    for (const block of blocks.slice(same)) this.element.append(build(block, 0));
    this.sources = sources;
  }
}

/** Return lines as blocks: each a kind and its lines, which alone decide how it looks. */
function split(lines, depth) {
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (!lines[at].trim()) { at += 1; continue; }
    const kind = kindAt(lines, at, depth) ?? "paragraph";
    const end = ENDS[kind](lines, at, depth);
    blocks.push({ kind, lines: lines.slice(at, end) });
    at = end;
  }
  return blocks;
}

function kindAt(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line)) return "fence";
  if (HEADING.test(line)) return "heading";
  if (RULE.test(line)) return "rule";
  if (opensMath(line)) return "math";
  if (depth < MAX_DEPTH && ITEM.test(line)) return "list";
  if (line.includes("|") && isDivider(lines[at + 1], cells(line).length)) return "table";
  return null;
}

const ENDS = {
  heading: (lines, at) => at + 1,
  rule: (lines, at) => at + 1,
  fence(lines, at) {
    return after(lines, at + 1, (line) => closesFence(line, lines[at]));
  },
  math(lines, at) {
    const close = MATH[lines[at].trim().slice(0, 2)];
    return after(lines, at + 1, (line) => line.includes(close) || !line.trim());
  },
  table(lines, at) {
    let end = at + 2;
    while (end < lines.length && lines[end].includes("|")) end += 1;
    return end;
  },
  list(lines, at, depth) {
    const first = item(lines[at]);
    let end = at + 1;
    for (let next = end; next < lines.length; next += 1) {
      if (!lines[next].trim()) continue;
      const here = item(lines[next]);
      const inside = indent(lines[next]) >= first.indent + 2;
      if (here && !inside && here.ordered !== first.ordered) break;
      if (!here && !inside && (next > end || kindAt(lines, next, depth))) break;
      if (!inside && RULE.test(lines[next])) break;
      end = next + 1;
    }
    return end;
  },
  paragraph(lines, at, depth) {
    let end = at + 1;
    while (end < lines.length && lines[end].trim() && !interrupts(lines, end, depth)) end += 1;
    return end;
  },
};

/** Whether a line begins a block in the middle of a paragraph; "1998. It was" does not. */
function interrupts(lines, at, depth) {
  const kind = kindAt(lines, at, depth);
  return kind === "list" ? [null, 1].includes(item(lines[at]).number) : kind !== null;
}

function after(lines, at, closes) {
  while (at < lines.length && !closes(lines[at])) at += 1;
  return Math.min(at + 1, lines.length);
}

const indent = (line) => line.length - line.trimStart().length;

function item(line) {
  const match = ITEM.exec(line);
  if (!match) return null;
  const [, spaces, mark, text] = match;
  const ordered = mark.length > 1;
  return { indent: spaces.length, width: spaces.length + mark.length + 1, ordered, number: ordered ? parseInt(mark, 10) : null, text: text ?? "" };
}

function closesFence(line, opening) {
  const mark = FENCE.exec(opening)[1];
  return line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "");
}

function opensMath(line) {
  const open = line.trim().slice(0, 2);
  return open in MATH && open !== "\\(" && !line.trim().slice(2).includes(MATH[open]);
}

const cells = (line) => line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|").map((cell) => cell.trim());
const isDivider = (line, count) =>
  Boolean(line?.includes("-")) && cells(line).length === count && cells(line).every((cell) => /^:?-+:?$/.test(cell));

function build({ kind, lines }, depth) {
  if (kind === "fence") {
    const closed = lines.length > 1 && closesFence(lines.at(-1), lines[0]);
    return h("pre", {}, h("code", {}, lines.slice(1, closed ? -1 : undefined).join("\n")));
  }
  if (kind === "heading") {
    const [, marks, text] = HEADING.exec(lines[0]);
    return h(`h${Math.min(6, marks.length + 3)}`, {}, inline(text.replace(/ #+ *$/, "").trim()));
  }
  if (kind === "rule") return h("hr");
  if (kind === "math") return h("p", {}, lines.join("\n"));
  if (kind === "list") return list(lines, depth);
  if (kind === "table") return table(lines);
  return h("p", {}, inline(lines.join("\n")));
}

function list(lines, depth) {
  const first = item(lines[0]);
  const items = [];
  for (const line of lines) {
    const here = item(line);
    if (here && here.indent < first.indent + 2) items.push({ width: here.width, lines: [here.text] });
    else items.at(-1).lines.push(line.slice(Math.min(indent(line), items.at(-1).width)));
  }
  return h(first.ordered ? "ol" : "ul", { start: first.number === 1 ? null : first.number },
    items.map((one) => h("li", {}, split(one.lines, depth + 1).map((block, i) =>
      i === 0 && block.kind === "paragraph" ? inline(block.lines.join("\n")) : build(block, depth + 1)))));
}

function table([head, , ...rows]) {
  const count = cells(head).length;
  const row = (tag, line) => {
    const texts = cells(line);
    return h("tr", {}, Array.from({ length: count }, (_, i) => h(tag, {}, inline(texts[i] ?? ""))));
  };
  return h("div", { class: "scrolls" },
    h("table", {}, h("thead", {}, row("th", head)), h("tbody", {}, rows.map((line) => row("td", line)))));
}

/** Return a text's nodes: strings, and elements for what is marked. */
function inline(text, depth = 0) {
  const nodes = [];
  const missing = new Set(); // closers that do not come any more
  let plain = "";
  for (let at = 0; at < text.length;) {
    PLAIN.lastIndex = at;
    const skipped = PLAIN.exec(text)?.[0];
    if (skipped) {
      plain += skipped;
      at += skipped.length;
      continue;
    }
    const run = runAt(text, at);
    const span = spanAt(text, at, run, missing, depth);
    if (span?.node) {
      nodes.push(plain, span.node);
      plain = "";
    } else {
      plain += span?.text ?? run;
    }
    at = span?.end ?? at + run.length;
  }
  nodes.push(plain);
  return nodes.filter((node) => node !== "");
}

function runAt(text, at) {
  let end = at + 1;
  while (text[at] !== "\\" && text[end] === text[at]) end += 1;
  return text.slice(at, end);
}

function spanAt(text, at, run, missing, depth) {
  const begin = at + run.length;
  if (run === "\\" && "*_`".includes(text[begin] || " ")) return { text: text[begin], end: begin + 1 };
  if (run[0] === "\\" || run[0] === "$") return math(text, at, run, missing);
  const isCode = run[0] === "`";
  const [before, next] = [text[at - 1] ?? " ", text[begin] ?? " "];
  if (!isCode && (run.length > 3 || depth >= MAX_DEPTH || /[\w)\]}]/.test(before) || /\s/.test(next))) return null;
  const fits = isCode ? () => true : (close) =>
    !/\s/.test(text[close - 1]) && !/[\w([{]/.test(text[close + run.length] ?? " ");
  const close = closer(text, begin + 1, run, missing, (c) =>
    text[c - 1] !== run[0] && text[c + run.length] !== run[0] && fits(c));
  if (close < 0) return null;
  const inner = text.slice(begin, close);
  const end = close + run.length;
  if (isCode) return { node: h("code", {}, /^ .*[^ ].* $/s.test(inner) ? inner.slice(1, -1) : inner), end };
  const marked = inline(inner, depth + 1);
  if (run.length === 1) return { node: h("em", {}, marked), end };
  return { node: h("strong", {}, run.length === 2 ? marked : h("em", {}, marked)), end };
}

/** Return LaTeX as the text it is; "$5 and $6" is none. */
function math(text, at, run, missing) {
  const open = run === "$" ? "$" : text.slice(at, at + 2);
  const begin = at + open.length;
  const single = open === "$";
  if (!single && !(open in MATH)) return null;
  if (single && /\s/.test(text[begin] ?? " ")) return null;
  const close = closer(text, begin + 1, MATH[open] ?? "$", missing, (c) =>
    !single || (!/\s/.test(text[c - 1]) && !/\d/.test(text[c + 1] ?? " ")));
  return close < 0 ? null : { text: text.slice(at, close + open.length), end: close + open.length };
}

/** Return where a span ends, or -1; whether a place closes must not depend on where it opened. */
function closer(text, from, mark, missing, fits) {
  if (missing.has(mark)) return -1;
  let close = text.indexOf(mark, from);
  while (close >= 0 && !fits(close)) close = text.indexOf(mark, close + 1);
  if (close < 0) missing.add(mark);
  return close;
}
