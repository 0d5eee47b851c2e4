// The page: a prompt and how to continue it, one answer or two, and where two part.

import { complete, get, hasToken } from "./api.js";
import { Answer, make } from "./answer.js";
import { hueOf } from "./lanes.js";
import { cardOf } from "./card.js";

const $ = (id) => document.getElementById(id);
let models = [];
let answers = [];
let running = null;

async function begin() {
  if (!hasToken) throw new Error("open the address that moetool serve printed: it ends with #token=…");
  const listed = (await get("/v1/models")).data;
  models = await Promise.all(listed.map(({ id }) => get(`/v1/models/${encodeURIComponent(id)}`)));
  $("models").textContent = models.map(({ id }) => id).join(" and ");
  $("compare").hidden = models.length < 2;
  $("cards").replaceChildren(...models.map(cardOf));
  const nLayers = Math.max(...models.map(({ card }) => card.model.args.n_layers));
  const nExperts = Math.max(...models.map(({ card }) => card.model.n_experts));
  $("layer").replaceChildren(...Array.from({ length: nLayers }, (_, n) => make("option", { value: n }, `${n}`)));
  $("layer").value = Math.floor(nLayers / 2);
  $("colours").hidden = !nExperts;
  $("legend").replaceChildren(...Array.from({ length: nExperts }, (_, n) => {
    const chip = make("span", { class: "chip" }, `${n}`);
    chip.style.setProperty("--hue", hueOf(n, nExperts));
    return chip;
  }));
  watchQueue();
}

function asked() {
  const number = (id) => Number($(id).value);
  return {
    prompt: $("prompt").value, echo: true, routing: true, return_token_ids: true,
    max_tokens: number("max_tokens"), temperature: number("temperature"), top_p: number("top_p"),
    top_k: number("top_k"), seed: number("seed"),
    stop: $("stop").value.split("\n").filter((text) => text !== "")
      .map((text) => text.replaceAll("\\n", "\n")),
  };
}

async function write(event) {
  event?.preventDefault();
  if (running || !models.length || !$("ask").reportValidity()) return;
  running = new AbortController();
  trouble("");
  busy(true);
  const wanted = models.length > 1 && !$("both").checked ? models.slice(0, 1) : models;
  answers = wanted.map((model, n) => new Answer(
    model, wanted.length > 1 ? `${"AB"[n]}: ${model.id}` : model.id,
    (index) => answers.forEach((other, m) => m !== n && other.select(index)),
  ));
  answers.forEach((answer) => answer.colourBy(Number($("layer").value)));
  $("answers").replaceChildren(...answers.map(({ article }) => article));
  $("difference").hidden = true;
  const body = asked();
  // Both at once: the server's line puts one behind the other.
  const done = await Promise.allSettled(answers.map((answer, n) => follow(answer, wanted[n].id, body)));
  const failed = done.find(({ status, reason }) => status === "rejected" && reason.name !== "AbortError");
  if (failed) trouble(failed.reason.message);
  tellDifference(true);
  running = null;
  await tellQueue();
  $("written").dataset.texts = Number($("written").dataset.texts ?? 0) + 1;
  busy(false);
}

async function follow(answer, model, body) {
  answer.article.classList.add("writing");
  answer.state.textContent = "reading the prompt";
  try {
    await complete({ ...body, model }, {
      signal: running.signal,
      waits: (n) => { answer.state.textContent = `${n} before this one`; },
      heard: (event) => {
        answer.hear(event);
        tellDifference(false);
      },
    });
  } catch (error) {
    answer.state.textContent += error.name === "AbortError" ? ", stopped" : ", cut off";
    throw error;
  } finally {
    answer.article.classList.remove("writing");
  }
}

// Marks the first token at which two answers part.
function tellDifference(ended) {
  if (answers.length < 2) return;
  const [a, b] = answers.map(({ tokens }) => tokens);
  const n = Math.min(a.length, b.length);
  let at = 0;
  while (at < n && a[at].token === b[at].token && a[at].text === b[at].text) at++;
  const parted = at < n || (ended && a.length !== b.length);
  if (!parted && !(ended && n)) return;
  const quoted = (token) => (token ? JSON.stringify(token.text) : "the end");
  $("difference").hidden = false;
  $("difference").classList.toggle("same", !parted);
  $("difference").textContent = parted
    ? `First difference at token ${at}: ${quoted(a[at])} in A, ${quoted(b[at])} in B`
    : `No difference: ${n} tokens are the same`;
  if (parted) [a[at], b[at]].forEach((token) => token?.node.classList.add("different"));
}

function busy(is) {
  $("written").setAttribute("aria-busy", is);
  $("run").disabled = is;
  $("cancel").disabled = !is;
}

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

async function tellQueue() {
  try {
    const { running: now, waiting } = await get("/v1/queue");
    $("queue").textContent = now ? `writing, ${waiting} waiting` : "idle";
  } catch {
    $("queue").textContent = "the server does not answer";
  }
}

async function watchQueue() {
  if (!document.hidden) await tellQueue();
  setTimeout(watchQueue, 2000);
}

$("ask").addEventListener("submit", write);
$("cancel").addEventListener("click", () => running?.abort());
$("layer").addEventListener("change", () => answers.forEach((answer) => answer.colourBy(Number($("layer").value))));
$("examples").addEventListener("click", ({ target }) => {
  if (target.dataset.prompt) $("prompt").value = target.dataset.prompt;
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) write(event);
  if (event.key === "Escape") running?.abort();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => answers.forEach(({ lanes }) => lanes?.soon()));
begin().catch((error) => trouble(error.message));
