// What the clients in Node share, as python/driver.py does for those in Python.

import { createInterface } from "node:readline";

export { PICTURE, PIXEL, QUESTION, SCHEMA, look, Said } from "./said.mjs";
import { Said } from "./said.mjs";

export const URL = process.env.MILLSTREAM_TEST_URL;

/** Answers requests until there are no more. */
export async function serve(operations) {
  const write = process.stdout.write.bind(process.stdout);
  for (const name of ["log", "info", "debug"]) console[name] = console.error; // no answer
  for await (const line of createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    const said = new Said();
    try {
      await operations[request.op](request, said);
    } catch (error) {
      said.fail(error);
    }
    write(`${JSON.stringify(said)}\n`);
  }
  process.exit(0);
}
