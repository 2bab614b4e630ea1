// The page, the client in one file, and a token for each visitor. Node 20 and nothing else: no framework, no build. The
// client is in the package `millstream` (docs/guides/install.md):
//
//     npm install …/dist/millstream-*.tgz
//     MILLSTREAM_KEY=ms_live_… node server.mjs
//
// Millstream has to let the page in: MILLSTREAM_CORS_ORIGINS=http://localhost:3000

import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";

const { MILLSTREAM_URL = "http://127.0.0.1:8000", MILLSTREAM_KEY, PORT = "3000" } = process.env;
const CLIENT = findClient();
const read = (path) => readFile(new URL(path, import.meta.url), "utf8");

const routes = {
  "GET /": async () => {
    const page = await read("index.html");
    return ["text/html", page.replace("<html", `<html data-millstream="${MILLSTREAM_URL}"`)];
  },
  // Any place that serves files will do.
  "GET /millstream.js": async () => ["text/javascript", await readFile(CLIENT, "utf8")],
  "POST /token": async (visitor) => {
    // Your users log in first; whose it is and what it may do is written into a token.
    const answer = await fetch(`${MILLSTREAM_URL}/v1/tokens`, {
      method: "POST",
      headers: { Authorization: `Bearer ${MILLSTREAM_KEY}`, "Content-Type": "application/json" },
      body: JSON.stringify({ user: visitor, max_streams: 2, max_tokens: 2000 }),
    });
    if (!answer.ok) throw new Error(`POST /v1/tokens: ${answer.status}`);
    return ["text/plain", (await answer.json()).token];
  },
};

function findClient() {
  const require = createRequire(import.meta.url);
  for (const place of ["millstream/millstream.js", "../../clients/ts/dist/millstream.js"]) {
    try {
      return require.resolve(place);
    } catch {} // it is not there
  }
  console.error("The client is not here: npm install the millstream-*.tgz that `make dist` builds.");
  process.exit(1);
}

const server = createServer(async (request, response) => {
  const route = routes[`${request.method} ${request.url}`];
  const known = /(?:^|; )visitor=([\w-]{36})(?:;|$)/.exec(request.headers.cookie ?? "")?.[1];
  const visitor = known ?? randomUUID();
  if (known === undefined) response.setHeader("Set-Cookie", `visitor=${visitor}; HttpOnly; SameSite=Strict`);
  try {
    const [type, body] = route === undefined ? ["text/plain", "there is nothing here"] : await route(visitor);
    response.writeHead(route === undefined ? 404 : 200, { "Content-Type": `${type}; charset=utf-8` });
    response.end(body);
  } catch (error) {
    console.error(error.message);
    response.writeHead(502).end();
  }
});
server.listen(Number(PORT), "127.0.0.1", () => console.log(`http://localhost:${server.address().port}`));
