// A view as a link: everything needed to see it again stands behind the #, which browsers never send.

const MARK = "#v1=";

function linkOf(state) {
  const bytes = new TextEncoder().encode(JSON.stringify(state));
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return MARK + btoa(binary).replace(/\+/g, "-").replace(/\x2f/g, "_").replace(/=+$/, "");
}

/** The state in a fragment; null where there is none, an Error where it cannot be read. */
function stateOf(fragment) {
  if (!fragment.startsWith(MARK)) return null;
  const coded = fragment.slice(MARK.length).replace(/-/g, "+").replace(/_/g, "/");
  const binary = atob(coded);
  const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
  const found = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  const texts = Array.isArray(found.answers) ? found.answers : [];
  if (typeof found.prompt !== "string" || !texts.every((text) => typeof text === "string")) {
    throw new Error("no prompt and answers in it");
  }
  return { ...found, answers: texts };
}
