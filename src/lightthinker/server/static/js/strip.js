// The KV cache as it is now, drawn to scale: the prompt, every past thought's gists, the thought
// being written; below it what full chain-of-thought would hold. Segments keep their element, so a
// compressed thought is seen to shrink.

import { h } from "./dom.js";

export class Strip {
  constructor() {
    this.ours = h("div", { class: "track" });
    this.full = h("div", { class: "track" }, h("i", { class: "seg prompt" }), h("i", { class: "seg past" }), h("i", { class: "seg" }));
    this.element = h("div", { class: "strip", "aria-hidden": "true" }, this.ours, this.full);
    this.reset();
  }

  reset() {
    this.prompt = h("i", { class: "seg prompt" });
    this.current = h("i", { class: "seg now" });
    this.room = h("i", { class: "seg" });
    this.gists = 0;
    this.ours.replaceChildren(this.prompt, this.current, this.room);
  }

  /** @param beside The run with full chain-of-thought, when there is one; else it is computed. */
  show(run, beside) {
    const { live } = run.now;
    const full = beside ? beside.now.live : run.now.full;
    const scale = Math.max(256, full, live);
    const prompt = Math.min(run.prompt, live);
    while (this.gists < run.kept.length) {
      const before = Math.max(prompt, run.kept[this.gists - 1] ?? 0);
      this.current.className = "seg gist";
      grow(this.current, run.kept[this.gists] - before);
      this.current = h("i", { class: "seg now" });
      this.room.before(this.current);
      this.gists += 1;
    }
    grow(this.prompt, prompt);
    grow(this.current, live - Math.max(prompt, run.kept.at(-1) ?? 0));
    grow(this.room, scale - live);
    const [asked, past, room] = this.full.children;
    grow(asked, Math.min(run.prompt, full));
    grow(past, full - run.prompt);
    grow(room, scale - full);
  }
}

/** Give an element a share of its row in proportion to tokens. */
function grow(element, tokens) {
  element.style.flexGrow = String(Math.max(0, tokens));
}
