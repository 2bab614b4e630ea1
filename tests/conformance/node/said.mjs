// What the user of a client sees of one answer; also in a browser.

export const QUESTION = "Hello";
export const PIXEL =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
export const PICTURE = `data:image/png;base64,${PIXEL}`;
export const SCHEMA = {
  type: "object",
  properties: { q: { type: "integer" } },
  required: ["q"],
  additionalProperties: false,
};

export const look = ({ q }) => String(q + 6);

export class Said {
  text = "";
  pieces = 0;
  reasoning = "";
  calls = [];
  finish = null;
  usage = null; // of the prompt, of the answer
  error = null;

  piece(text) {
    if (text) {
      this.text += text;
      this.pieces += 1;
    }
  }

  call(name, given) {
    this.calls.push({ name, arguments: typeof given === "string" ? JSON.parse(given) : given });
  }

  enough(request) {
    return request.stop_after !== null && this.pieces >= request.stop_after;
  }

  fail(error) {
    const status = error.status ?? error.statusCode ?? null;
    this.error = { name: error.name, status, message: String(error.message).slice(0, 500) };
  }
}
