// The OpenAI API of the server that this page came from. Knows nothing of what is shown.
//
// Addresses are relative to the page, so that it works behind a path prefix.

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const url = (path) => new URL(path, document.baseURI);

function headers(apiKey) {
  const all = { "Content-Type": "application/json" };
  if (apiKey) all.Authorization = `Bearer ${apiKey}`;
  return all;
}

async function checked(request) {
  let response;
  try {
    response = await request;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.", 0);
  }
  if (response.ok) return response;
  let message = `The server answered ${response.status} ${response.statusText}.`;
  try {
    message = (await response.json()).error.message || message;
  } catch { /* not an error in OpenAI's form: the status says enough */ }
  throw new ApiError(message, response.status);
}

export async function models(apiKey) {
  const response = await checked(fetch(url("v1/models"), { headers: headers(apiKey) }));
  return (await response.json()).data;
}

export async function examples() {
  return (await (await checked(fetch(url("static/examples.json")))).json()).examples;
}

/** Yield the chunks of a streamed chat completion until [DONE]. */
export async function* chat(body, { apiKey, signal }) {
  const response = await checked(fetch(url("v1/chat/completions"), {
    method: "POST",
    headers: headers(apiKey),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  }));
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, chunk.error.code);
    yield chunk;
  }
  throw new ApiError("The connection closed before the answer was complete.", 0);
}

/** Yield the data of each server-sent event; events end at a blank line, whatever the line ends. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      buffer += value;
      let end;
      while ((end = /\r?\n\r?\n/.exec(buffer))) {
        const data = buffer.slice(0, end.index).split(/\r?\n/)
          .filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5).replace(/^ /, ""));
        buffer = buffer.slice(end.index + end[0].length);
        if (data.length) yield data.join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
