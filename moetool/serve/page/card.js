// What `moetool inspect` says of a model, as a table.

import { make } from "./answer.js";

const count = (n) => n.toLocaleString("en");
const gib = (n) => (n < 2 ** 30 ? `${(n / 2 ** 20).toFixed(1)} MiB` : `${(n / 2 ** 30).toFixed(1)} GiB`);

export function cardOf({ id, card, has_chat_template: chat }) {
  const { model } = card;
  const rows = [
    ["architecture", model.architecture],
    ["layout", `${model.convention} (${model.convention_title})`],
    ["format", `${card.format}, ${card.n_tensors} tensors, ${gib(card.nbytes)}`],
    ["parameters", count(model.n_params)],
    ["active", `${count(model.n_params_active)} for each token`],
    ["router", model.n_experts ? `top ${model.n_experts_per_tok} of ${model.n_experts} experts` : "none: dense"],
    ["layers", `${model.args.n_layers} of width ${model.args.dim}`],
    ["vocabulary", count(model.args.vocab_size)],
    ["context", `${count(model.max_seq_len)} tokens`],
    ["beside it", card.side_files.join(", ") || "nothing"],
    ["chat", chat ? "has a template" : "no template: completions only"],
  ];
  const body = rows.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value)));
  return make("details", {}, make("summary", {}, `Model card: ${id}`), make("table", {}, ...body));
}
