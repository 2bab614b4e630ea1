import { connection } from "next/server";
import { Suspense } from "react";

import { Chat } from "./Chat";

export default function Page() {
  return (
    <Suspense>
      <ConnectedChat />
    </Suspense>
  );
}

async function ConnectedChat() {
  await connection(); // the address is read when the page is asked for, not when it is built
  return <Chat url={process.env.MILLSTREAM_URL ?? "http://127.0.0.1:8000"} />;
}
