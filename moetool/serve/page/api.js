// What the page asks of the server that it came from, and of nobody else.

const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };

export const hasToken = token !== "";

export async function get(path) {
  return checked(await fetch(path, { headers }));
}

// Sends one request and calls `heard` for each event; resolves when the text has ended.
// `waits` hears how many are before us in the line.
export async function complete(body, { heard, waits, signal }) {
  const answer = await fetch("/v1/completions", {
    method: "POST", headers, signal, body: JSON.stringify({ ...body, stream: true }),
  });
  if (!answer.ok) await checked(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the server has gone away");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (event === "data: [DONE]") return;
      if (event.startsWith(": waiting ")) waits(Number(event.slice(10)));
      if (!event.startsWith("data: ")) continue;
      const found = JSON.parse(event.slice(6));
      if (found.error) throw new Error(found.error.message);
      heard(found);
    }
  }
}

async function checked(answer) {
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error.message);
  return found;
}
