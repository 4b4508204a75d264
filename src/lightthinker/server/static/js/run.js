// One answer as it grows: chunks in, thoughts, answer and KV curve out. Knows no elements.
//
// A thought's text is what streamed before its `thought_compressed` event. Without events (full
// chain-of-thought, or another server) blank lines separate thoughts.

const BLANK_LINE = "\n\n";

export class Run {
  /** @param {{compression: boolean, folds: boolean}} how `folds`: thoughts end by events. */
  constructor({ compression, folds }) {
    this.compression = compression;
    this.byEvents = folds;
    this.state = "waiting"; // waiting, thinking, answering, done, stopped, failed
    this.thoughts = [];
    this.answer = "";
    this.error = "";
    this.finishReason = null;
    this.usage = null;
    this.curve = []; // {seconds, live, full}, in KV tokens
    this.kept = []; // KV tokens live right after each compression
    this.seconds = 0;
  }

  get running() { return ["waiting", "thinking", "answering"].includes(this.state); }
  get now() { return this.curve.at(-1) ?? { seconds: 0, live: 0, full: 0 }; }
  get prompt() { return this.usage?.prompt_tokens ?? this.curve[0]?.full ?? 0; }
  get written() { return Math.max(0, this.now.full - this.prompt); }
  get peak() { return this.costs?.peak_tokens ?? this.highest ?? 0; }
  get costs() { return this.usage?.lightthinker ?? null; }
  get freed() { return this.thoughts.reduce((sum, t) => sum + (t.tokensFreed ?? 0), 0); }
  get gists() { return this.thoughts.reduce((sum, t) => sum + (t.numGists ?? 0), 0); }
  get folded() { return this.thoughts.filter((t) => t.numGists).length; }

  apply(chunk, seconds) {
    this.seconds = seconds;
    const choice = chunk.choices?.[0];
    const state = chunk.lightthinker ?? {};
    const reasoning = choice?.delta?.reasoning_content ?? choice?.delta?.reasoning ?? "";
    this.#reason(reasoning, state.events ?? []);
    this.#measure(state, seconds);
    if (choice?.delta?.content) {
      this.answer += choice.delta.content;
      if (this.answer.trim()) this.#close("answering");
    }
    if (choice?.finish_reason) this.finishReason = choice.finish_reason;
    if (chunk.usage) this.usage = chunk.usage;
  }

  finish() { this.#close("done"); }
  stop() { this.#close("stopped"); }
  fail(message) { this.error = message; this.#close("failed"); }

  #close(state) {
    const last = this.thoughts.at(-1);
    if (last?.state === "open") last.state = "kept";
    this.thoughts = this.thoughts.filter((t) => t.state !== "kept" || t.text.trim());
    this.state = state;
  }

  #reason(text, events) {
    if (text || events.length) this.state = this.state === "waiting" ? "thinking" : this.state;
    if (events.length) this.byEvents = true;
    for (const event of events) {
      if (event.type === "thought_started") this.#start(event.index);
      if (event.type !== "thought_compressed") continue;
      const cut = text.indexOf(BLANK_LINE);
      const end = cut < 0 ? text.length : cut + BLANK_LINE.length;
      const thought = this.#thought(event.index);
      thought.text += text.slice(0, end);
      text = text.slice(end);
      thought.numTokens = event.num_tokens;
      thought.numGists = event.num_gists;
      thought.tokensFreed = event.tokens_freed;
      thought.state = event.num_gists > 0 ? "folded" : "kept";
    }
    while (!this.byEvents && text.includes(BLANK_LINE)) {
      const end = text.indexOf(BLANK_LINE) + BLANK_LINE.length;
      const thought = this.#open();
      thought.text += text.slice(0, end);
      thought.state = thought.text.trim() ? "kept" : "open";
      text = text.slice(end);
    }
    if (text) this.#open().text += text;
  }

  /** A new thought has begun: those before it that were not compressed stay as they are. */
  #start(index) {
    this.#thought(index);
    for (let i = index - 1; this.thoughts[i]?.state === "open"; i -= 1) this.thoughts[i].state = "kept";
  }

  #thought(index) {
    while (this.thoughts.length <= index) {
      this.thoughts.push({ index: this.thoughts.length, text: "", state: "open" });
    }
    return this.thoughts[index];
  }

  #open() {
    const last = this.thoughts.at(-1);
    return last?.state === "open" ? last : this.#thought(this.thoughts.length);
  }

  #measure({ live_tokens: live, full_cot_tokens: full, events = [] }, seconds) {
    if (live === undefined || full === undefined) return;
    for (const event of events) {
      if (event.type !== "thought_compressed" || event.num_gists === 0) continue;
      // Thought and gists coexist for a moment: that is the peak.
      this.#point(seconds, event.live_tokens + event.tokens_freed, full);
      this.#point(seconds, event.live_tokens, full);
      this.kept.push(event.live_tokens);
    }
    this.#point(seconds, live, full);
  }

  #point(seconds, live, full) {
    this.curve.push({ seconds, live, full });
    this.highest = Math.max(this.highest ?? 0, live);
  }
}
