// Shows a run: thoughts that fold when they are compressed, the answer, what it cost. Only what
// changed is touched, so that thousands of tokens stay smooth.

import { h, setText } from "./dom.js";
import { bytes, change, count, plural, seconds } from "./format.js";
import { MarkdownView } from "./markdown.js";

const MAX_GIST_MARKS = 12;
let lastId = 0;

export const gistMarks = (n) =>
  h("span", { class: "gists", "aria-hidden": "true" }, Array.from({ length: Math.min(n, MAX_GIST_MARKS) }, () => h("i")));

/** Return a thought's name for people who listen. */
export function spoken(thought) {
  const name = `Thought ${thought.index + 1}`;
  if (thought.state === "folded") {
    return `${name}: ${plural(thought.numTokens, "token")} compressed to ${plural(thought.numGists, "gist")}`;
  }
  if (thought.state === "kept" && thought.numTokens) return `${name}: ${plural(thought.numTokens, "token")}, kept`;
  return name;
}

/** Whether a text holds the expected answer, not as a part of a longer word or number. */
function says(text, expected) {
  const at = text.lastIndexOf(expected);
  return at >= 0 && !/\w/.test(`${text[at - 1] ?? ""}${text[at + expected.length] ?? ""}`);
}

class ThoughtView {
  constructor(thought) {
    const id = `thought-${(lastId += 1)}`;
    this.shown = 0;
    this.state = "open";
    this.text = document.createTextNode("");
    this.fate = h("span", { class: "fate" });
    this.words = h("span", { class: "words" });
    this.head = h("button", {
      type: "button", class: "head", "aria-expanded": "true", "aria-controls": id,
      "aria-label": spoken(thought), onclick: () => this.toggle(true),
    }, h("span", { class: "number" }, thought.index + 1), this.words, this.fate);
    this.note = h("p", { class: "freed" });
    this.element = h("li", { class: "thought open" }, this.head,
      h("div", { class: "body", id }, h("div", {}, h("p", { class: "text" }, this.text), this.note)));
  }

  toggle(byHand = false) {
    if (byHand) this.element.classList.add("read");
    const closed = this.element.classList.toggle("closed");
    this.head.setAttribute("aria-expanded", String(!closed));
    this.element.querySelector(".body").inert = closed;
  }

  update(thought) {
    const text = thought.text.trimStart();
    if (text.length > this.shown) {
      this.text.appendData(text.slice(this.shown));
      this.shown = text.length;
    }
    if (thought.state === this.state && thought.numTokens === this.tokens) return;
    this.state = thought.state;
    this.tokens = thought.numTokens;
    this.text.data = thought.text.trim();
    this.shown = text.length;
    this.element.classList.remove("open");
    this.element.classList.add(thought.state);
    this.head.setAttribute("aria-label", spoken(thought));
    setText(this.words, thought.text.trim().split(/\s+/).join(" ").slice(0, 160));
    if (thought.state === "folded") {
      this.fate.replaceChildren(
        h("span", { class: "tokens" }, count(thought.numTokens), h("span", { class: "unit" }, " tokens")), " → ",
        gistMarks(thought.numGists), h("span", { class: "unit" }, ` ${plural(thought.numGists, "gist")}`));
      setText(this.note, `Freed: ${plural(thought.tokensFreed, "KV token")}. From here on the model sees only the gists of this thought.`);
      this.toggle();
    } else if (thought.numTokens) {
      this.fate.replaceChildren(count(thought.numTokens), h("span", { class: "unit" }, "tokens kept"));
    }
  }
}

export class RunView {
  /** @param options {titled, expected, onCurve}: whether it stands beside another, the known answer, what its curve button does. */
  constructor(run, { titled, expected, bytesPerToken, onCurve }) {
    this.run = run;
    this.expected = expected;
    this.bytesPerToken = bytesPerToken;
    this.onCurve = onCurve;
    this.thoughts = [];
    this.settled = 0;
    this.list = h("ol", { class: "thoughts" });
    this.answer = h("div", { class: "answer", hidden: true });
    const words = h("div", { class: "text" });
    this.words = new MarkdownView(words);
    this.answer.append(words);
    this.foot = h("footer", { class: "costs" });
    this.waiting = h("p", { class: "waiting" }, h("span", { "aria-hidden": "true" }, h("i"), h("i"), h("i")), h("span", { class: "unseen" }, "Waiting"));
    this.live = titled ? h("span", { class: "live" }) : null;
    const name = run.compression ? "Thoughts fold" : "Full chain-of-thought";
    this.element = h("section", { class: `run ${run.compression ? "ours" : "full"}`, "aria-label": name },
      titled && h("header", { class: "title" }, h("i", { "aria-hidden": "true" }), h("h3", {}, name), this.live),
      this.list, this.waiting, this.answer, this.foot);
  }

  update() {
    const { run } = this;
    for (let i = this.settled; i < run.thoughts.length; i += 1) {
      if (!this.thoughts[i]) {
        this.thoughts[i] = new ThoughtView(run.thoughts[i]);
        this.list.append(this.thoughts[i].element);
      }
      this.thoughts[i].update(run.thoughts[i]);
    }
    while (this.settled < run.thoughts.length && run.thoughts[this.settled].numTokens) this.settled += 1;
    while (this.thoughts.length > run.thoughts.length) this.thoughts.pop().element.remove();
    this.waiting.hidden = run.state !== "waiting";
    this.answer.hidden = !run.answer.trim();
    this.words.update(run.answer.trim());
    if (this.live) setText(this.live, plural(run.now.live, "KV token"));
    if (!run.running && !this.closed) this.#close();
  }

  #close() {
    const { run } = this;
    this.closed = true;
    if (this.expected && run.state === "done") {
      const right = says(run.answer, this.expected);
      this.answer.hidden = false;
      this.answer.append(h("p", { class: `verdict ${right ? "good" : "bad"}` }, right ? "✓ correct" : `✗ the right answer is ${this.expected}`));
    }
    const words = { stopped: "Stopped.", failed: run.error };
    if (words[run.state]) this.foot.append(h("p", { class: run.state, role: run.state === "failed" ? "alert" : null }, words[run.state]));
    if (run.state === "done" && run.finishReason === "length") this.foot.append(h("p", { class: "stopped" }, "Ended at the most tokens allowed; Settings has the limit."));
    if (run.curve.length) this.foot.append(this.#costs());
  }

  #costs() {
    const { run } = this;
    const full = run.costs?.full_cot_peak_tokens ?? run.now.full;
    const parts = [plural(run.peak, "KV token") + " at most"];
    if (run.compression) parts.push(`full CoT ${count(full)} (${change(run.peak, full) || "the same"})`);
    if (this.bytesPerToken) parts.push(bytes(run.peak * this.bytesPerToken));
    parts.push(seconds(run.seconds));
    return h("button", { type: "button", class: "cost", title: "Show this curve", onclick: this.onCurve }, parts.join(" · "));
  }
}
