// From figures of tokens to colours: the same scale for all answers of one model.

/** What each view shows, and the words of its legend. */
const VIEWS = {
  contribution: { of: (t) => t.contribution, words: () => FACTS.adds },
  reward: {
    of: (t) => t.reward, isCentred: true,
    words: (scale) => `the reward at a token, blue above and orange below ${figure(scale.middle)}, their median`,
  },
  gate: { of: (t) => t.gate, isWeight: true, words: () => "how much a token counts, darker counts more" },
  running: {
    of: (t) => t.running, isCentred: true,
    words: (scale) =>
      `the score if the answer ended here, blue above and orange below ${figure(scale.middle)}, the median`,
  },
};

/** Whether single tokens hold whole scores, as with heads of the last token: then parts say nothing. */
function isOfOneToken(results) {
  return results.every(({ token_scores: tokens }) =>
    !tokens || tokens.filter((t) => t.contribution !== 0).length <= 1);
}

class Scale {
  constructor(view, results) {
    this.view = VIEWS[view];
    const values = results.flatMap((r) => (r.token_scores ?? []).map(this.view.of));
    this.middle = this.view.isCentred && values.length ? quantile(values, 0.5) : 0;
    const far = values.map((value) => Math.abs(value - this.middle));
    this.reach = values.length ? quantile(far, FACTS.quantile) || Math.max(...far) : 0;
  }

  /** Class of a token's colour: up1..up5, down1..down5, gate1..gate5, or none. */
  shade(token) {
    const level = this.level(this.view.of(token));
    if (level === 0) return "";
    return this.view.isWeight ? `gate${level}` : `${level > 0 ? "up" : "down"}${Math.abs(level)}`;
  }

  level(value) {
    if (!this.reach) return 0;
    const scaled = Math.max(-1, Math.min(1, (value - this.middle) / this.reach));
    return Math.round(scaled * FACTS.levels);
  }

  /** The legend: a strip of shades between its ends, and words. */
  legend() {
    const shades = [];
    for (let i = -FACTS.levels; i <= FACTS.levels; i++) {
      if (this.view.isWeight && i < 0) continue;
      const name = this.view.isWeight ? "gate" : i > 0 ? "up" : "down";
      shades.push(make("i", i ? { class: name + Math.abs(i) } : {}));
    }
    const low = this.view.isWeight ? 0 : this.middle - this.reach;
    return make("p", { class: "legend" }, `Colour: ${this.view.words(this)}. `,
      make("span", { class: "ends" }, figure(low),
        make("span", { class: "scale", "aria-hidden": "true" }, ...shades),
        figure(this.middle + this.reach)));
  }
}

/** The tokens of an answer as one tab stop; arrows move, `onSelect(i)` hears of it. */
class HeatMap {
  constructor(tokens, label, onSelect) {
    this.tokens = tokens;
    this.onSelect = onSelect;
    this.spans = tokens.map((token, i) => {
      const text = shown(token.text, i === tokens.length - 1);
      const isMark = token.text.trim() === "" && token.text !== " ";
      return make("span", { role: "option", tabindex: i ? -1 : 0, "aria-selected": "false",
        "data-i": i, ...(isMark ? { class: "mark" } : {}) }, text);
    });
    this.node = make("div", { class: "tokens", role: "listbox", "aria-label": label,
      "aria-orientation": "horizontal" }, ...this.spans);
    this.at = -1;
    const placeOf = (event) => Number(event.target.dataset?.i ?? -1);
    this.node.addEventListener("pointerover", (e) => placeOf(e) >= 0 && onSelect(placeOf(e)));
    this.node.addEventListener("focusin", (e) => placeOf(e) >= 0 && onSelect(placeOf(e)));
    this.node.addEventListener("keydown", (e) => this.move(e));
  }

  move(event) {
    const last = this.spans.length - 1;
    const to = { ArrowRight: this.at + 1, ArrowLeft: this.at - 1, Home: 0, End: last,
      ArrowDown: this.at + 10, ArrowUp: this.at - 10 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.spans[Math.max(0, Math.min(last, to))].focus();
  }

  paint(scale) {
    this.spans.forEach((span, i) => {
      const kept = [...span.classList].filter((name) => name === "mark" || name === "at");
      span.className = [...kept, scale.shade(this.tokens[i])].join(" ").trim();
    });
  }

  mark(i, words) {
    const before = this.spans[this.at];
    if (before) {
      before.classList.remove("at");
      before.tabIndex = -1;
      before.setAttribute("aria-selected", "false");
      before.removeAttribute("aria-label");
    }
    this.at = i;
    const now = this.spans[i];
    now.classList.add("at");
    now.tabIndex = 0;
    now.setAttribute("aria-selected", "true");
    now.setAttribute("aria-label", words);
  }
}
