// Elements, numbers and words. Whatever comes from outside becomes a text node, never markup.

const $ = (id) => document.getElementById(id);

/** An element; `attributes` may hold `class` and aria names, children are nodes or plain text. */
function make(tag, attributes = {}, ...children) {
  const made = tag === "svg" || tag === "path"
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** `0.123`, `12.3`, `1234`; about three digits, whatever the size. */
function figure(value) {
  const size = Math.abs(value);
  if (size !== 0 && size < 0.0005) return value.toExponential(1).replace("-", "−").replace("e-", "e−");
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return value.toFixed(digits).replace("-", "−");
}

/** The same with a plus before what is not negative. */
const signed = (value) => (value >= 0 ? "+" : "") + figure(value);

const counted = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

/** `1, 2 and 3`. */
function listed(words) {
  if (words.length < 2) return words.join("");
  return `${words.slice(0, -1).join(", ")} and ${words[words.length - 1]}`;
}

/** Value below which the share `q` of the values lies, interpolated as numpy does. */
function quantile(values, q) {
  const sorted = Float64Array.from(values).sort();
  const place = q * (sorted.length - 1), low = Math.floor(place);
  const high = Math.min(low + 1, sorted.length - 1);
  return sorted[low] + (place - low) * (sorted[high] - sorted[low]);
}

/** Tokens without visible text still need something to point at. */
function shown(text, isLast) {
  if (text === "") return isLast ? "⟨end⟩" : "·";
  return text.replace(/\n/g, "⏎\n");
}

/** A token in a sentence: one line, spaces seen. */
function named(text, isLast) {
  if (text === "") return isLast ? "⟨end⟩" : "·";
  const flat = text.replace(/\n/g, "⏎");
  return flat.trim() === "" ? "␣" : flat.trim();
}
