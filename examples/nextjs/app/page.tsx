import { Chat } from "./Chat";

export const dynamic = "force-dynamic"; // the address is read when the page is asked for, not when it is built

export default function Page() {
  return <Chat url={process.env.MILLSTREAM_URL ?? "http://127.0.0.1:8000"} />;
}
