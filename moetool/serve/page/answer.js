// One answer: its tokens as they come, its lanes, and what one token met in every layer.

import { Lanes, hueOf } from "./lanes.js";

export function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export class Answer {
  // `model` is what /v1/models says of it, with its card; `chosen` hears which token is looked at.
  constructor(model, title, chosen) {
    const { n_experts: nExperts, args } = model.card.model;
    this.nExperts = nExperts;
    this.tokens = []; // {token, text, routes, node}; the prompt's first
    this.nPrompt = 0;
    this.selected = -1;
    this.layer = 0;
    this.chosen = chosen;
    this.state = make("span", { class: "state" });
    this.text = make("div", {
      class: "text", role: "listbox", "aria-label": `Tokens of ${title}`, tabindex: "-1",
    });
    this.seen = make("div", { class: "seen" });
    this.article = make("article", { "aria-label": title },
      make("header", {}, make("h2", {}, title), this.state), this.text);
    if (nExperts) {
      const canvas = make("canvas", {
        role: "img", "aria-label": "Experts of each token by layer; arrow keys in the text walk them",
      });
      this.lanes = new Lanes(canvas, args.n_layers, nExperts);
      this.article.append(make("div", { class: "lanes" }, this.lanes.names(), canvas));
      canvas.addEventListener("mousemove", (event) => this.look(this.lanes.at(event.offsetX)));
    }
    this.article.append(this.seen);
    this.text.addEventListener("pointerover", (event) => this.look(this.indexOf(event.target)));
    this.text.addEventListener("focusin", (event) => this.look(this.indexOf(event.target)));
    this.text.addEventListener("keydown", (event) => this.walk(event));
  }

  indexOf(node) {
    return node.dataset?.index === undefined ? -1 : Number(node.dataset.index);
  }

  // Takes one event of the stream.
  hear({ choices: [choice], timings }) {
    this.nPrompt += choice?.echoed_tokens ?? 0;
    choice?.token_ids?.forEach((token, at) => this.add(token, choice.text, choice.routing?.[at]));
    if (timings) this.timings = timings;
    if (choice?.finish_reason) this.finish = choice.finish_reason;
    this.tell();
  }

  add(token, text, routes) {
    const index = this.tokens.length;
    const isPrompt = index < this.nPrompt;
    const node = make("span", {
      class: `token${isPrompt ? " prompt" : ""}`, role: "option", "aria-selected": "false",
      tabindex: index ? "-1" : "0", "data-index": index,
    }, text);
    // What has no ink needs a mark: it is a token as any other.
    if (!text) node.dataset.mark = `⟨${token}⟩`;
    else if (!text.replaceAll("\n", "")) node.dataset.mark = "↵";
    const follows = this.text.scrollHeight - this.text.scrollTop - this.text.clientHeight < 40;
    this.tokens.push({ token, text, routes, node });
    this.text.append(node);
    if (follows) this.text.scrollTop = this.text.scrollHeight;
    this.colour(this.tokens[index]);
    this.lanes?.add(routes ?? null);
    if (!isPrompt) this.began ??= performance.now();
  }

  colour({ routes, node }) {
    if (!routes) return;
    node.classList.add("routed");
    node.style.setProperty("--hue", hueOf(routes[this.layer][0][0], this.nExperts));
  }

  colourBy(layer) {
    this.layer = layer;
    this.tokens.forEach((token) => this.colour(token));
  }

  tell() {
    const n = this.tokens.length - this.nPrompt;
    const seconds = this.timings ? this.timings.new_seconds : (performance.now() - this.began) / 1000;
    const steps = this.timings ? this.timings.new_tokens : n - 1;
    const rate = n > 1 && seconds > 0 ? `, ${(steps / seconds).toFixed(1)} tokens/s` : "";
    const ended = this.finish ? `, ended by ${this.finish}` : "";
    this.state.textContent = n > 0 || this.finish ? `${n} tokens${rate}${ended}` : "reading the prompt";
  }

  // Looks at a token: its experts and weights in every layer.
  look(index) {
    if (index < 0 || index >= this.tokens.length) return;
    this.select(index);
    this.chosen(index);
  }

  select(index) {
    this.tokens[this.selected]?.node.setAttribute("aria-selected", "false");
    const found = this.tokens[index];
    this.selected = found ? index : -1;
    this.lanes?.mark(this.selected);
    if (!found) return;
    found.node.setAttribute("aria-selected", "true");
    const head = make("p", {}, `token ${index}: ${JSON.stringify(found.text)}, id ${found.token}`);
    const layers = (found.routes ?? []).map((pairs, layer) => this.layerOf(pairs, layer));
    const nothing = this.nExperts ? "the model has not read it" : "a dense model has no experts";
    this.seen.replaceChildren(head, make("div", { class: "experts" }, ...layers));
    if (!layers.length) this.seen.append(make("p", {}, nothing));
  }

  layerOf(pairs, layer) {
    const chips = pairs.map(([expert, weight]) => {
      const chip = make("span", { class: "chip" }, `${expert}: ${(100 * weight).toFixed(1)} %`);
      chip.style.setProperty("--hue", hueOf(expert, this.nExperts));
      return chip;
    });
    return make("div", { class: "layer" }, make("b", {}, `layer ${layer}`), ...chips);
  }

  walk(event) {
    const last = this.tokens.length - 1;
    const to = {
      ArrowRight: this.selected + 1, ArrowLeft: this.selected - 1, Home: 0, End: last,
    }[event.key];
    if (to === undefined || to < 0 || to > last) return;
    event.preventDefault();
    this.tokens[this.selected]?.node.setAttribute("tabindex", "-1");
    this.tokens[to].node.setAttribute("tabindex", "0");
    this.tokens[to].node.focus();
  }
}
