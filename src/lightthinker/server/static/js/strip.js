// The KV cache as it is now, drawn to scale: the prompt, every past thought's gists, the thought
// being written; below it what full chain-of-thought would hold. Segments keep their element, so a
// compressed thought is seen to shrink.

import { h } from "./dom.js";

export class Strip {
  constructor() {
    this.ours = h("div", { class: "track" });
    this.full = h("div", { class: "track" }, h("i", { class: "seg prompt" }), h("i", { class: "seg past" }));
    this.element = h("div", { class: "strip", "aria-hidden": "true" }, this.ours, this.full);
    this.reset();
  }

  reset() {
    this.prompt = h("i", { class: "seg prompt" });
    this.current = h("i", { class: "seg now" });
    this.gists = [];
    this.ours.replaceChildren(this.prompt, this.current);
  }

  /** @param beside The run with full chain-of-thought, when there is one; else it is computed. */
  show(run, beside) {
    const { live } = run.now;
    const full = beside ? beside.now.live : run.now.full;
    const scale = Math.max(256, full, live);
    const width = (element, tokens) => { element.style.width = `${(100 * tokens) / scale}%`; };
    while (this.gists.length < run.kept.length) {
      this.current.className = "seg gist";
      this.gists.push(this.current);
      this.current = h("i", { class: "seg now" });
      this.ours.append(this.current);
    }
    const prompt = Math.min(run.prompt, live);
    let before = prompt;
    width(this.prompt, prompt);
    run.kept.forEach((kept, index) => {
      width(this.gists[index], Math.max(0, kept - before));
      before = kept;
    });
    width(this.current, Math.max(0, live - before));
    width(this.full.children[0], Math.min(run.prompt, full));
    width(this.full.children[1], Math.max(0, full - run.prompt));
  }
}
