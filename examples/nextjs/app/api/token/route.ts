/** The key stays here. The page gets a token for the user who is logged in, for ten minutes. */
export async function POST(): Promise<Response> {
  const answer = await fetch(`${process.env.MILLSTREAM_URL ?? "http://127.0.0.1:8000"}/v1/tokens`, {
    method: "POST",
    headers: {
      Authorization: `Bearer ${process.env.MILLSTREAM_KEY}`,
      "Content-Type": "application/json",
    },
    body: JSON.stringify({ user: "the-id-of-your-user", max_streams: 2, max_tokens: 2000 }),
  });
  if (!answer.ok) return new Response("there is no token to be had", { status: 502 });
  const { token } = (await answer.json()) as { token: string };
  return new Response(token, { headers: { "Cache-Control": "no-store" } });
}
