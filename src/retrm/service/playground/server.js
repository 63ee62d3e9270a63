// The server this page came from: one way to ask it, and its refusals in words a reader can use.

/** What went wrong: a sentence, what to do about it, and whether asking again may help. */
class Trouble extends Error {
  constructor(message, { advice = "", needsToken = false, mayRetry = false } = {}) {
    super(message);
    Object.assign(this, { advice, needsToken, mayRetry });
  }
}

const TOKEN = "retrm-token";

function keptToken() {
  try { return sessionStorage.getItem(TOKEN) || ""; } catch { return ""; }
}

function keepToken(text) {
  try {
    if (text) sessionStorage.setItem(TOKEN, text); else sessionStorage.removeItem(TOKEN);
  } catch { /* Storage may be forbidden; the field still holds it. */ }
}

/** The address of a path of this server, which a proxy may have put behind a prefix, with or without a slash. */
function addressOf(path) {
  const home = location.pathname.endsWith("/") ? location.pathname : `${location.pathname}/`;
  return home + path.replace(/^\//, "");
}

/** The JSON that `path` answers; GET without a body. */
async function ask(path, { body, signal } = {}) {
  const token = $("token").value.trim();
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (token) headers.Authorization = `Bearer ${token}`;
  let reply;
  try {
    reply = await fetch(addressOf(path), {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server cannot be reached.", {
      advice: "Is retrm serve still running?", mayRetry: true,
    });
  }
  const found = await reply.json().catch(() => null);
  if (!reply.ok) throw refusal(reply, found);
  if (found === null) throw new Trouble("The server answered with something that is no JSON.");
  return found;
}

function refusal(reply, found) {
  const said = found?.error?.message ?? found?.detail ?? found?.message;
  const words = typeof said === "string" ? said : said ? JSON.stringify(said) : "";
  const wait = Number(reply.headers.get("Retry-After"));
  const again = wait > 0 ? `Try again in ${counted(wait, "second")}.` : "Try again in a moment.";
  switch (reply.status) {
    case 401:
    case 403:
      return new Trouble(
        $("token").value ? "The server does not take this key." : "The server wants a key.",
        { advice: "Type it under Options; whoever started the server knows it.", needsToken: true },
      );
    case 404:
      return new Trouble(words || "The server does not offer this.");
    case 413:
      return new Trouble(words || "That is more text than the server takes at once.", {
        advice: "Use fewer or shorter answers.",
      });
    case 429:
    case 503:
      return new Trouble(words || "The server is busy or still starting.", {
        advice: again, mayRetry: true,
      });
    case 504:
      return new Trouble(words || "The server did not manage in time.", {
        advice: "Use fewer or shorter answers, or try again.", mayRetry: true,
      });
    case 400:
    case 422:
      return new Trouble(words || "The server does not take this request.", {
        advice: /context|too long|exceed/i.test(words)
          ? "Options let you cut what is too long instead." : "",
      });
    default:
      return new Trouble(`${words || "The server failed."} (${reply.status})`, { mayRetry: true });
  }
}
