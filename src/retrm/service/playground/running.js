// The score so far along an answer, as a small line; all answers of a model share the height.

const WIDE = 1000, HIGH = 100, EDGE = 6;

/** Lowest and highest score so far of all answers, without the few far ones at their beginnings. */
function rangeOf(results) {
  // Of each answer by itself: a long one would leave no room for the line of a short one.
  const lines = results.map((r) => (r.token_scores ?? []).map((t) => t.running)).filter((v) => v.length);
  if (!lines.length) return null;
  const ends = lines.map((values) => values[values.length - 1]);
  const low = Math.min(...lines.map((values) => quantile(values, 0.04)), ...ends);
  const high = Math.max(...lines.map((values) => quantile(values, 0.96)), ...ends);
  const pad = (high - low || 1) * 0.04;
  return { low: low - pad, high: high + pad };
}

class RunningScore {
  constructor(tokens, range, onSelect) {
    const values = tokens.map((t) => t.running);
    this.x = (i) => (tokens.length > 1 ? EDGE + (i / (tokens.length - 1)) * (WIDE - 2 * EDGE) : WIDE / 2);
    const y = (value) => HIGH * (1 - (value - range.low) / (range.high - range.low));
    const seen = (value) => Math.max(-HIGH, Math.min(2 * HIGH, y(value))).toFixed(2);
    const line = values.map((v, i) => `${i ? "L" : "M"}${this.x(i).toFixed(2)} ${seen(v)}`).join("");
    this.cursor = make("path", { class: "cursor", d: "" });
    const svg = make("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", role: "img",
      "aria-label": `Score so far: ${figure(values[0])} after the first token, lowest ` +
        `${figure(Math.min(...values))}, highest ${figure(Math.max(...values))}, ` +
        `${figure(values[values.length - 1])} at the end.` });
    if (range.low < 0 && range.high > 0) {
      svg.append(make("path", { class: "zero", d: `M0 ${y(0)}H${WIDE}` }));
    }
    const one = values.length === 1 ? `h${EDGE}` : "";
    svg.append(make("path", { class: "line", d: line + one }), this.cursor);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const share = ((event.clientX - box.left) / box.width * WIDE - EDGE) / (WIDE - 2 * EDGE);
      onSelect(Math.max(0, Math.min(tokens.length - 1, Math.round(share * (tokens.length - 1)))));
    });
    this.node = make("div", { class: "running" },
      make("div", { class: "ends", "aria-hidden": "true" },
        make("span", {}, figure(range.high)), make("span", {}, figure(range.low))),
      svg, make("p", {}, "score so far, token by token"));
  }

  mark(i) {
    this.cursor.setAttribute("d", `M${this.x(i).toFixed(2)} 0V${HIGH}`);
  }
}
