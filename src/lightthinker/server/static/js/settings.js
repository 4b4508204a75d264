// What the user chose. Kept for the tab (the API key) or the browser (theme and the rest); every
// read and write survives a browser that refuses storage.

import { byId, setText } from "./dom.js";

function storage(kind) {
  try { return window[kind]; } catch { return null; }
}
const read = (kind, key) => { try { return storage(kind)?.getItem(key) ?? null; } catch { return null; } };
const write = (kind, key, value) => {
  try {
    if (value) storage(kind)?.setItem(key, value); else storage(kind)?.removeItem(key);
  } catch { /* private mode: the choice lasts as long as the page */ }
};

const number = (id) => {
  const value = byId(id).valueAsNumber;
  return Number.isFinite(value) ? value : null;
};

export class Settings {
  constructor() {
    this.dialog = byId("settings");
    this.apiKey = read("sessionStorage", "lightthinker.key") ?? "";
    byId("api-key").value = this.apiKey;
    byId("max-tokens").value = "2048";
    byId("temperature").value = "0";
    byId("open-settings").addEventListener("click", () => this.open());
    this.dialog.addEventListener("close", () => this.#close());
    this.onkey = () => {};
  }

  open(note = "", focus = null) {
    setText(byId("settings-note"), note);
    byId("settings-note").hidden = !note;
    if (!this.dialog.open) this.dialog.showModal();
    if (focus) byId(focus).focus();
  }

  #close() {
    const key = byId("api-key").value.trim();
    if (key === this.apiKey) return;
    this.apiKey = key;
    write("sessionStorage", "lightthinker.key", key);
    this.onkey();
  }

  get model() { return byId("model").value; }
  get maxThought() { return number("max-thought"); }

  /** The part of a request body that the user chose. */
  sampling() {
    const max = number("max-tokens"), temperature = number("temperature");
    return { ...(max === null ? {} : { max_tokens: max }), ...(temperature === null ? {} : { temperature }) };
  }
}

const THEMES = ["system", "light", "dark"];

/** Wire the theme button: as the system has it, light, dark. */
export function themes() {
  let theme = read("localStorage", "lightthinker.theme") ?? "system";
  const show = () => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    setText(byId("theme-name"), `Theme: ${theme}`);
    byId("theme").title = `Theme: ${theme}`;
  };
  byId("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    write("localStorage", "lightthinker.theme", theme === "system" ? "" : theme);
    show();
  });
  show();
}
