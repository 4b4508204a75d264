// The page: asks, shows runs as they stream, and wires the controls.
//
// Earlier turns are sent as question and answer alone: reasoning stays in its turn, as the chat
// template has it.

import * as api from "./api.js";
import { byId, h, setText } from "./dom.js";
import { plural } from "./format.js";
import { Panel } from "./panel.js";
import { Run } from "./run.js";
import { RunView } from "./runview.js";
import { Settings, themes } from "./settings.js";
import { asData, asPage, download } from "./transcript.js";

const NEAR_END_PX = 140;
const SPEAK_EVERY_MS = 5000;

class App {
  constructor() {
    this.settings = new Settings();
    this.panel = new Panel(byId("panel"));
    this.models = [];
    this.turns = [];
    this.examples = new Map();
    this.aborter = null;
    this.spoke = 0;
  }

  async start() {
    themes();
    this.#wire();
    this.settings.onkey = () => this.#loadModels();
    await Promise.all([this.#loadModels(), this.#loadExamples()]);
  }

  get model() { return this.models.find((m) => m.id === this.settings.model) ?? this.models[0]; }
  get mode() { return document.querySelector("input[name=mode]:checked").value; }
  get bytesPerToken() { return this.model?.lightthinker?.kv_bytes_per_token ?? 0; }

  async #loadModels() {
    try {
      this.models = await api.models(this.settings.apiKey);
    } catch (error) {
      if (error.status === 401) this.settings.open("This server asks for an API key.", "api-key");
      else this.#say(error.message);
      setText(byId("model-name"), error.status === 401 ? "API key needed" : "server not reached");
      return;
    }
    byId("model").replaceChildren(...this.models.map((m) => h("option", { value: m.id }, m.id)));
    this.#showModel();
  }

  #showModel() {
    const facts = this.model?.lightthinker;
    const gists = facts?.num_gists ? `${plural(facts.num_gists, "gist")} a thought` : "";
    byId("model-name").replaceChildren(this.model?.id.split("/").at(-1) ?? "", h("small", {}, facts?.compresses ? gists : "does not compress"));
    for (const radio of document.querySelectorAll("input[name=mode]")) {
      radio.disabled = !facts?.compresses && radio.value !== "off";
      if (radio.disabled && radio.checked) document.querySelector("input[value=off]").checked = true;
    }
  }

  async #loadExamples() {
    let all = [];
    try { all = await api.examples(); } catch { byId("examples-title").hidden = true; }
    for (const example of all) {
      this.examples.set(example.question, example.value);
      byId("examples").append(h("li", {}, h("button", { type: "button", onclick: () => this.ask(example.question) },
        h("b", {}, example.title), h("span", {}, example.question))));
    }
  }

  #wire() {
    const question = byId("question");
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask(question.value);
    });
    question.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.ask(question.value);
    });
    byId("stop").addEventListener("click", () => this.stop());
    byId("new-chat").addEventListener("click", () => this.reset());
    byId("model").addEventListener("change", () => this.#showModel());
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || this.settings.dialog.open) return;
      if (!byId("export-menu").hidden) this.#menu(false);
      else this.stop();
    });
    byId("export").addEventListener("click", () => this.#menu(byId("export-menu").hidden));
    document.addEventListener("click", (event) => {
      if (!event.target.closest(".menu")) this.#menu(false);
    });
    byId("export-json").addEventListener("click", () => this.#export("json"));
    byId("export-html").addEventListener("click", () => this.#export("html"));
    this.#busy(false);
  }

  #menu(open) {
    byId("export-menu").hidden = !open;
    byId("export").setAttribute("aria-expanded", String(open));
    if (open) byId("export-html").focus();
  }

  async #export(kind) {
    this.#menu(false);
    byId("export").focus();
    const about = { model: this.model?.id ?? "", kv_bytes_per_token: this.bytesPerToken, settings: this.settings.sampling() };
    const name = `lightthinker-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}`;
    if (kind === "json") download(`${name}.json`, "application/json", `${JSON.stringify(asData(this.turns, about), null, 1)}\n`);
    else download(`${name}.html`, "text/html", await asPage(this.turns, about));
  }

  /** Ask a question, in one run or two. */
  async ask(text) {
    const question = text.trim();
    if (!question || this.aborter) return;
    if (!this.model) { await this.#loadModels(); if (!this.model) return; }
    const modes = { on: [true], off: [false], both: [true, false] }[this.mode];
    const folds = Boolean(this.model.lightthinker?.compresses);
    const runs = modes.map((compression) => new Run({ compression, folds: compression && folds }));
    const turn = { question, runs };
    const show = () => this.#open(turn);
    const views = runs.map((run) => new RunView(run, {
      titled: runs.length > 1, expected: this.examples.get(question), bytesPerToken: this.bytesPerToken, onCurve: show,
    }));
    turn.element = h("article", { class: "turn", "aria-label": `Question ${this.turns.length + 1}` },
      h("p", { class: "asked" }, question), h("div", { class: `runs ${runs.length > 1 ? "two" : ""}` }, views.map((v) => v.element)));
    const bodies = runs.map((run) => this.#body(question, run));
    byId("welcome").hidden = true;
    byId("turns").append(turn.element);
    this.turns.push(turn);
    byId("question").value = "";
    this.#open(turn);
    turn.element.scrollIntoView({ block: "end" });
    this.aborter = new AbortController();
    this.#busy(true);
    this.#say(runs.length > 1 ? "Reasoning, twice" : "Reasoning");
    const started = performance.now();
    const draw = () => {
      const atEnd = document.documentElement.scrollHeight - scrollY - innerHeight < NEAR_END_PX;
      views.forEach((view) => view.update());
      if (this.open === turn) this.panel.update();
      if (atEnd) scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
      if (this.aborter) this.#progress(runs);
    };
    let frame = requestAnimationFrame(function again() { draw(); frame = requestAnimationFrame(again); });
    await Promise.all(runs.map((run, i) => this.#follow(run, bodies[i], started)));
    cancelAnimationFrame(frame);
    draw();
    this.aborter = null;
    this.#busy(false);
    this.#report(runs);
  }

  async #follow(run, body, started) {
    const clock = () => (performance.now() - started) / 1000;
    try {
      for await (const chunk of api.chat(body, { apiKey: this.settings.apiKey, signal: this.aborter.signal })) {
        run.apply(chunk, clock());
      }
      run.finish();
    } catch (error) {
      if (error.name === "AbortError") { run.stop(); return; }
      run.fail(error.message);
      if (error.status === 401) this.settings.open("This server asks for an API key.", "api-key");
    }
  }

  #body(question, run) {
    const history = this.turns.flatMap((turn) => {
      const same = turn.runs.find((r) => r.compression === run.compression) ?? turn.runs[0];
      if (same.state !== "done") return [];
      return [{ role: "user", content: turn.question }, { role: "assistant", content: same.answer.trim() }];
    });
    const body = { model: this.model.id, messages: [...history, { role: "user", content: question }], ...this.settings.sampling() };
    if (!this.model.lightthinker) return body;
    const max = this.settings.maxThought;
    return { ...body, lightthinker: { compression: run.compression, events: true, ...(max && run.compression ? { max_thought_tokens: max } : {}) } };
  }

  stop() { this.aborter?.abort(); }

  reset() {
    this.stop();
    for (const turn of this.turns) turn.element.remove();
    this.turns = [];
    this.open = null;
    byId("panel").hidden = true;
    document.body.classList.remove("wide");
    byId("welcome").hidden = false;
    byId("export").disabled = true;
    byId("question").focus();
  }

  #open(turn) {
    this.open = turn;
    document.body.classList.toggle("wide", turn.runs.length > 1);
    this.panel.open(turn.runs, this.bytesPerToken);
  }

  #busy(busy) {
    byId("send").hidden = busy;
    byId("stop").hidden = !busy;
    byId("export").disabled = busy || !this.turns.length;
    document.body.classList.toggle("busy", busy);
    for (const button of byId("examples").querySelectorAll("button")) button.disabled = busy;
    if (!busy && document.activeElement === document.body) byId("question").focus({ preventScroll: true });
  }

  #progress(runs) {
    const folding = runs.find((run) => run.compression);
    if (!folding?.folded || performance.now() - this.spoke < SPEAK_EVERY_MS) return;
    this.#say(`${plural(folding.folded, "thought")} folded, ${plural(folding.now.live, "KV token")} held`);
  }

  #report(runs) {
    this.#say(runs.map((run) => {
      if (run.state === "stopped") return "Stopped.";
      if (run.state === "failed") return run.error;
      return `${run.compression ? "Answer" : "Full chain-of-thought's answer"}: ${run.answer.trim()}`;
    }).join(" "));
  }

  #say(text) {
    this.spoke = performance.now();
    setText(byId("announcer"), text);
  }
}

new App().start();
