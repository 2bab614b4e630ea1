/** The hook in a real browser: rendering, StrictMode, and what the page's life does to it. */

import { Activity, Fragment, StrictMode, useState } from "react";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { render } from "vitest-browser-react";

import type { ChatOptions } from "../src/react";
import { Chat, textOf, useStreamingChat } from "../src/react";
import { FakeServer } from "./server";

function Page({ options, onRender }: { options: ChatOptions & { chat?: Chat }; onRender?: () => void }) {
  const { messages, status, busy, error, send, stop, regenerate } = useStreamingChat(options);
  const [, again] = useState(0);
  onRender?.();
  return (
    <>
      <ol>
        {messages.map((message) => (
          <li key={message.id}>{textOf(message)}</li>
        ))}
      </ol>
      <p role="status">{status}</p>
      {error && <p role="alert">{error.code}</p>}
      <button type="button" onClick={() => send("Why?")}>
        Ask
      </button>
      <button type="button" onClick={() => stop()} disabled={!busy}>
        Stop
      </button>
      <button type="button" onClick={() => regenerate()}>
        Again
      </button>
      <button type="button" onClick={() => again((n) => n + 1)}>
        Render
      </button>
    </>
  );
}

function options(server: FakeServer, more: ChatOptions = {}): ChatOptions {
  return { fetch: server.fetch, request: { model: "m" }, ...more };
}

describe("useStreamingChat", () => {
  it("shows an answer as it comes, and its end", async () => {
    const server = new FakeServer(["Hel"], false);
    const screen = await render(<Page options={options(server)} />);
    await screen.getByText("Ask").click();
    await expect.element(screen.getByText("Hel", { exact: true })).toBeVisible();
    await expect.element(screen.getByRole("status")).toHaveTextContent("streaming");
    server.say("lo");
    await expect.element(screen.getByText("Hello", { exact: true })).toBeVisible();
    server.end("stop");
    await expect.element(screen.getByRole("status")).toHaveTextContent("idle");
    expect(server.generations.size).toBe(1);
  });

  it("asks once in StrictMode, and goes on with what it was given last", async () => {
    const server = new FakeServer(["Hello"]);
    const finished: string[] = [];
    const given = options(server, { onFinish: () => finished.push("old") });
    const screen = await render(<Page options={given} />, { wrapper: StrictMode });
    await screen.rerender(<Page options={{ ...given, onFinish: () => finished.push("new") }} />);
    await screen.getByText("Ask").click();
    await expect.element(screen.getByText("Hello")).toBeVisible();
    await expect.element(screen.getByRole("status")).toHaveTextContent("idle");
    expect(finished).toEqual(["new"]);
    expect(server.generations.size).toBe(1);
  });

  it("stops at the server", async () => {
    const server = new FakeServer(["Hel"], false);
    const screen = await render(<Page options={options(server)} />);
    await screen.getByText("Ask").click();
    await expect.element(screen.getByText("Hel", { exact: true })).toBeVisible();
    await screen.getByText("Stop").click();
    await expect.element(screen.getByRole("status")).toHaveTextContent("idle");
    expect(server.cancelled).toBe(1);
  });

  it("shows a failure, and the answer to the second try", async () => {
    const server = new FakeServer(["Hello"]);
    server.cuts = [{ status: 502, body: '{"error":{"code":"upstream_refused","message":"no"}}' }];
    const screen = await render(<Page options={options(server)} />);
    await screen.getByText("Ask").click();
    await expect.element(screen.getByRole("alert")).toHaveTextContent("upstream_refused");
    await screen.getByText("Again").click();
    await expect.element(screen.getByText("Hello")).toBeVisible();
    expect(screen.getByRole("alert").query()).toBeNull();
  });

  it("reads on where another component takes its place", async () => {
    sessionStorage.clear();
    const server = new FakeServer(["Hel"], false);
    const given = options(server, { storageKey: "hook" });
    const first = await render(<Page options={given} />);
    await first.getByText("Ask").click();
    await expect.element(first.getByText("Hel", { exact: true })).toBeVisible();
    await first.unmount();
    const second = await render(<Page options={given} />);
    server.say("lo");
    server.end("stop");
    await expect.element(second.getByText("Hello", { exact: true })).toBeVisible();
    expect(server.generations.size).toBe(1);
    expect(server.cancelled).toBe(0);
  });

  it("is one conversation for all components that give it the same name", async () => {
    sessionStorage.clear();
    const server = new FakeServer(["Hello"]);
    const given = options(server, { storageKey: "shared" });
    const both = (
      <>
        <Page options={given} />
        <Page options={given} />
      </>
    );
    const screen = await render(both);
    await screen.getByText("Ask").first().click();
    await expect.element(screen.getByText("Hello").nth(1)).toBeVisible();
    expect(server.generations.size).toBe(1);
    dispatchEvent(new PageTransitionEvent("pagehide"));
    await screen.unmount();
    const again = await render(<Page options={given} />);
    await expect.element(again.getByText("Hello")).toBeVisible();
  });

  describe.each([
    ["StrictMode", StrictMode],
    ["production", Fragment],
  ])("in %s, components with one name are one conversation", (_, wrapper) => {
    it("that come later", async () => {
      sessionStorage.clear();
      const given = options(new FakeServer(["Hello"]), { storageKey: "later" });
      const screen = await render(<Page options={given} />, { wrapper });
      await screen.rerender(
        <>
          <Page options={given} />
          <Page options={given} />
        </>,
      );
      await screen.getByText("Ask").first().click();
      await expect.element(screen.getByRole("listitem").nth(3)).toHaveTextContent("Hello");
      await screen.getByText("Ask").nth(1).click();
      await expect.element(screen.getByRole("listitem").nth(7)).toHaveTextContent("Hello");
    });

    it("that come after one that took another's place", async () => {
      sessionStorage.clear();
      const given = options(new FakeServer(["Hello"]), { storageKey: "place" });
      const screen = await render(<Page key="1" options={given} />, { wrapper });
      await screen.rerender(<Page key="2" options={given} />);
      await screen.rerender([<Page key="2" options={given} />, <Page key="3" options={given} />]);
      await screen.getByText("Ask").first().click();
      await expect.element(screen.getByRole("listitem").nth(3)).toHaveTextContent("Hello");
      expect(JSON.parse(sessionStorage.getItem("place") ?? "").messages).toHaveLength(2);
    });

    it("that were hidden meanwhile", async () => {
      sessionStorage.clear();
      const given = options(new FakeServer(["Hello"]), { storageKey: "hidden" });
      const both = (first: "visible" | "hidden", second: "visible" | "hidden") => [
        <Activity key="1" mode={first}>
          <Page options={given} />
        </Activity>,
        <Activity key="2" mode={second}>
          <Page options={given} />
        </Activity>,
      ];
      const screen = await render(both("visible", "hidden"), { wrapper });
      await screen.getByText("Ask").first().click();
      await expect.element(screen.getByText("Hello")).toBeVisible();
      await screen.rerender(both("hidden", "visible"));
      await screen.getByText("Ask").nth(1).click();
      const items = screen.getByRole("listitem");
      await expect.element(items.nth(3)).toHaveTextContent("Hello");
      await screen.rerender(both("visible", "visible"));
      await expect.element(items.nth(7)).toHaveTextContent("Hello");
      await screen.getByText("Ask").first().click();
      await expect.element(items.nth(11)).toHaveTextContent("Hello");
      expect(JSON.parse(sessionStorage.getItem("hidden") ?? "").messages).toHaveLength(6);
    });
  });

  it.each([0, 1])("keeps the options that a component beside it leaves out (%i)", async (place) => {
    sessionStorage.clear();
    const server = new FakeServer(["Hel"], false);
    const finished: string[] = [];
    const given = options(server, { storageKey: "light", onFinish: () => finished.push("end") });
    const light = <Page key="light" options={{ storageKey: "light" }} />;
    const both =
      place === 0 ? [light, <Page key="1" options={given} />] : [<Page key="1" options={given} />, light];
    const screen = await render(both);
    await screen.getByText("Ask").first().click();
    await expect.element(screen.getByText("Hel", { exact: true }).nth(1)).toBeVisible();
    await screen.unmount();
    const again = await render(both);
    server.end("stop");
    await expect.element(again.getByRole("status").first()).toHaveTextContent("idle");
    await expect.element(again.getByText("Hel", { exact: true }).nth(1)).toBeVisible();
    expect([finished, server.generations.size]).toEqual([["end"], 1]);
  });

  it("shows a chat that it is given", async () => {
    const chat = new Chat(options(new FakeServer(["Hello"])));
    const screen = await render(<Page options={{ chat }} />);
    await chat.send("Why?");
    await expect.element(screen.getByText("Hello")).toBeVisible();
  });

  it("keeps a conversation that is too long for the tab's storage", async () => {
    sessionStorage.clear();
    const server = new FakeServer(["x".repeat(6_000_000), "end"]);
    const given = options(server, { storageKey: "long" });
    const first = await render(<Page options={given} />);
    await first.getByText("Ask").click();
    await expect.element(first.getByRole("status")).toHaveTextContent("idle");
    await first.unmount();
    await vi.waitFor(async () => {
      const second = await render(<Page options={given} />);
      await expect.element(second.getByRole("listitem").nth(1), { timeout: 1000 }).toHaveTextContent(/xend$/);
    });
    expect(sessionStorage.getItem("long")).toMatch(/^elsewhere:/);
    sessionStorage.clear();
  });

  it("draws at most once a frame, however many events there are", async () => {
    const words = Array.from({ length: 2000 }, (_, i) => `${i} `);
    const server = new FakeServer(words);
    let renders = 0;
    const screen = await render(<Page options={options(server)} onRender={() => renders++} />);
    let frames = 0;
    let running = true;
    const count = (): void => {
      frames++;
      if (running) requestAnimationFrame(count);
    };
    requestAnimationFrame(count);
    await screen.getByText("Ask").click();
    await expect.element(screen.getByText("1999")).toBeVisible();
    await expect.element(screen.getByRole("status")).toHaveTextContent("idle");
    running = false;
    // One a frame, and a few for the changes of status.
    expect(renders).toBeLessThan(frames + 10);
    expect(renders).toBeLessThan(500);
  });

  it.each(["online", "pageshow"])("comes back at once when the browser says %s", async (type) => {
    const server = new FakeServer(["Hel"], false, 10_000);
    const broken = new AbortController();
    const fetchOnce: typeof fetch = (input, init) =>
      server.fetch(input, server.calls.length === 0 ? { ...init, signal: broken.signal } : init);
    vi.spyOn(Math, "random").mockReturnValue(1); // the longest waits there are
    onTestFinished(() => void vi.restoreAllMocks());
    const screen = await render(<Page options={options(server, { fetch: fetchOnce })} />);
    await screen.getByText("Ask").click();
    await expect.element(screen.getByText("Hel", { exact: true })).toBeVisible();
    server.say("lo");
    await expect.element(screen.getByText("Hello", { exact: true })).toBeVisible();
    broken.abort();
    await expect.element(screen.getByRole("status")).toHaveTextContent("reconnecting");
    server.end("stop");
    const restored = new PageTransitionEvent("pageshow", { persisted: true });
    dispatchEvent(type === "pageshow" ? restored : new Event(type));
    await expect.element(screen.getByRole("status"), { timeout: 2000 }).toHaveTextContent("idle");
    expect(server.generations.size).toBe(1);
  });
});
