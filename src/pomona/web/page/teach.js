// Teaching: say what a photo shows, look at what that changes, use it or throw it away, and bring an older version back.
//
// In: what the recogniser offers for teaching, and cards. Out: forms on cards, and the panel.
// Why: nothing is learnt without being looked at first. The token stays in this tab alone.

import { drawRange } from "./chart.js";
import { find, make, nextId } from "./dom.js";
import { formatNumber, formatTime, nameOf, say } from "./words.js";

const KEY = "pomona token";

const pathOf = (one) => one.path.join("/");

const percent = (share) => formatNumber(Math.round(share * 1000) / 10);

const readToken = () => {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
};

const keepToken = (token) => {
  try {
    sessionStorage.setItem(KEY, token);
  } catch {
    return;
  }
};

export class Teaching {
  constructor(recogniser, { onFault, onSay, onModel }) {
    Object.assign(this, { recogniser, teach: recogniser.teach, onFault, onSay, onModel, state: null, versions: [], isBusy: false, notice: "", thumbnails: new Map() });
    this.list = make("datalist", { id: "taught-classes" });
    document.body.append(this.list);
    find("teaching").hidden = false;
    this.hasToken = Boolean(readToken());
    this.teach.setToken(readToken());
    if (this.hasToken) this.#do(() => this.#refresh());
    this.draw();
  }

  get classes() {
    return this.recogniser.model.classes;
  }

  // The class that a text names in any language, or the text as a new one.
  #findLabel(text) {
    const wanted = text.trim().toLowerCase();
    const found = this.classes.find((one) => [pathOf(one), one.label, one.name_en, one.name_zh].some((name) => name?.toLowerCase() === wanted));
    return { label: found ? pathOf(found) : text.trim(), isNew: !found };
  }

  drawForm(card) {
    const taught = card.taught;
    if (taught) return make("p", { className: "line taught", attributes: { role: "status" } }, say("teach_added", { name: taught }));
    const id = nextId("teach");
    const input = make("input", { id, type: "text", required: true, autocomplete: "off", attributes: { list: "taught-classes", "aria-describedby": `${id}-hint` } });
    const hint = make("p", { className: "hint", id: `${id}-hint` }, say("teach_hint"));
    input.oninput = () => {
      const { label, isNew } = this.#findLabel(input.value);
      hint.textContent = label && isNew ? say("teach_new", { name: label }) : say("teach_hint");
    };
    const form = make("form", {}, make("label", { htmlFor: id }, say("teach_what")), input, make("button", { type: "submit", className: "main" }, say("teach_add")), hint);
    form.onsubmit = (event) => {
      event.preventDefault();
      this.#add(card, input.value);
    };
    const { unknown, sure } = card.prediction;
    return make("details", { className: "teach" }, make("summary", {}, say(unknown || sure === false ? "teach_open_known" : "teach_open")), form);
  }

  async #add(card, text) {
    if (!this.hasToken) {
      this.onFault(say("teach_token_first"));
      find("token")?.focus();
      return;
    }
    const { label } = this.#findLabel(text);
    if (!label) return;
    await this.#do(async () => {
      const added = await this.teach.add(card.blob, label);
      this.thumbnails.set(added.photo, URL.createObjectURL(card.blob)); // the card's own goes with the card
      card.taught = label;
      card.draw();
      this.onSay(say("teach_added", { name: label }));
      await this.#refresh();
    });
  }

  // Carry something out, one at a time; what goes wrong is said.
  async #do(task) {
    this.isBusy = true;
    this.draw();
    try {
      await task();
      this.onFault("");
    } catch (error) {
      if (error.status === 401 || error.status === 403) this.hasToken = false;
      this.onFault(error);
    }
    this.isBusy = false;
    this.draw();
  }

  async #refresh() {
    this.state = await this.teach.read();
    this.versions = await this.teach.listVersions();
  }

  async #changed(text) {
    await this.#refresh();
    this.onModel(await this.teach.readModel());
    this.notice = text;
    this.onSay(text);
  }

  #button(key, task, className = "") {
    return make("button", { type: "button", className, disabled: this.isBusy, onclick: () => this.#do(task) }, say(key));
  }

  draw() {
    const options = this.classes.map((one) => make("option", { value: nameOf(one) }, pathOf(one)));
    this.list.replaceChildren(...options);
    const parts = this.hasToken && this.state ? [this.#drawNotice(), ...this.#drawWaiting(), ...this.#drawProposal(), ...this.#drawVersions()] : [this.#drawToken()];
    find("teaching-body").replaceChildren(...parts.filter((part) => part !== null));
  }

  #drawNotice() {
    return this.notice ? make("p", { className: "taught", attributes: { role: "status" } }, this.notice) : null;
  }

  #drawToken() {
    const input = make("input", { id: "token", type: "password", autocomplete: "off", required: true, attributes: { "aria-describedby": "token-hint" } });
    const form = make("form", { className: "token" }, make("label", { htmlFor: "token" }, say("token")), input, make("button", { type: "submit", className: "main", disabled: this.isBusy }, say("token_use")), make("p", { className: "hint", id: "token-hint" }, say("token_hint")));
    form.onsubmit = (event) => {
      event.preventDefault();
      const token = input.value.trim();
      this.teach.setToken(token);
      this.hasToken = true;
      this.#do(async () => {
        await this.#refresh();
        keepToken(token);
      });
    };
    return form;
  }

  #drawWaiting() {
    const { waiting, proposal } = this.state;
    if (!waiting.length) return [make("p", { className: "line" }, say("waiting_none"))];
    const items = waiting.map(({ photo, label }) => {
      const url = this.thumbnails.get(photo);
      const remove = make("button", { type: "button", className: "quiet", disabled: this.isBusy, attributes: { "aria-label": `${say("waiting_remove")}: ${label}` }, onclick: () => this.#do(() => this.teach.remove(photo).then(() => this.#refresh())) }, say("waiting_remove"));
      return make("li", {}, url ? make("img", { src: url, alt: "" }) : null, make("p", {}, label), remove);
    });
    const check = proposal ? null : this.#button("check", () => this.#propose(), "main");
    const busy = this.isBusy && this.isChecking ? make("p", { className: "hint waiting" }, say("checking")) : null;
    return [make("h3", {}, say("waiting")), make("ul", { className: "waiting-photos" }, ...items), check, busy];
  }

  async #propose() {
    this.isChecking = true;
    this.notice = "";
    this.draw();
    try {
      await this.teach.propose();
    } finally {
      this.isChecking = false;
    }
    await this.#refresh();
    find("proposal")?.focus();
  }

  #drawProposal() {
    const { proposal } = this.state;
    if (!proposal) return [];
    const side = (key, found) =>
      make(
        "div",
        {},
        make("p", { className: "hint" }, say(key)),
        found ? make("p", { className: "figure" }, percent(found.share), make("small", {}, "%")) : make("p", { className: "figure light" }, say("unmeasured")),
        found ? drawRange(found) : null,
        found ? make("p", { className: "hint" }, `${say("interval", { low: percent(found.low), high: percent(found.high) })}, ${say("on_photos", { n: found.n })}`) : null,
      );
    const news = proposal.new_classes.length ? make("p", { className: "line" }, say("proposal_new", { names: proposal.new_classes.join(say("comma")) })) : null;
    const notes = [proposal.basis, ...(proposal.notes ?? [])].filter(Boolean).map((text) => make("li", {}, text));
    const body = [
      make("h3", {}, say("proposal", { n: proposal.n_photos })),
      news,
      make("div", { className: "two" }, side("before", proposal.before), side("after", proposal.after)),
      make("ul", { className: "notes" }, ...notes),
      make("div", { className: "actions" }, this.#button("confirm", () => this.#confirm(proposal.id), "main"), this.#button("discard", () => this.#discard(proposal.id))),
    ];
    return [make("div", { id: "proposal", className: "proposal", tabIndex: -1 }, ...body.filter((part) => part !== null))];
  }

  async #confirm(id) {
    const { version } = await this.teach.confirm(id);
    await this.#changed(say("confirmed", { n: version }));
  }

  async #discard(id) {
    await this.teach.discard(id);
    await this.#refresh();
    this.notice = say("discarded");
  }

  async #restore(number) {
    const { version } = await this.teach.restore(number);
    await this.#changed(say(version === number ? "confirmed" : "restored", { n: number, version }));
  }

  #drawVersions() {
    if (!this.versions.length) return [];
    const heads = ["version", "version_when", "version_what", "version_classes", "version_photos"].map((key, i) => make("th", { scope: "col", className: i > 2 ? "num" : "" }, say(key)));
    const rows = this.versions.map((one) =>
      make(
        "tr",
        { className: one.is_current ? "strong" : "" },
        make("th", { scope: "row" }, formatNumber(one.number)),
        make("td", {}, formatTime(one.created)),
        make("td", {}, one.action),
        make("td", { className: "num" }, one.n_classes === null ? "" : formatNumber(one.n_classes)),
        make("td", { className: "num" }, one.n_photos === null ? "" : formatNumber(one.n_photos)),
        make("td", {}, one.is_current ? say("version_now") : this.#restoreButton(one.number)),
      ),
    );
    const head = make("tr", {}, ...heads, make("td"));
    return [make("h3", {}, say("versions")), make("div", { className: "scroll", tabIndex: 0, attributes: { role: "region", "aria-label": say("versions") } }, make("table", { className: "versions" }, make("thead", {}, head), make("tbody", {}, ...rows)))];
  }

  #restoreButton(number) {
    return make("button", { type: "button", className: "quiet", disabled: this.isBusy, dataset: { version: number }, attributes: { "aria-label": `${say("restore")}: ${number}` }, onclick: () => this.#do(() => this.#restore(number)) }, say("restore"));
  }
}

