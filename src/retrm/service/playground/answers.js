// The answers of one model, best first, each on a card.

const MOST_NAMED = 3;

class Card {
  constructor(result, place, column) {
    Object.assign(this, { result, column });
    this.tokens = result.token_scores;
    const name = `Answer ${result.index + 1}`;
    this.node = make("li", { class: place === 1 ? "card best" : "card", "data-answer": result.index });
    this.node.append(make("div", { class: "cardhead" },
      make("span", { class: "place" }, result.score === null ? "–" : `${place}.`),
      make("h4", {}, name),
      make("span", { class: "muted" }, this.tokens ? counted(this.tokens.length, "token") : ""),
      make("span", { class: "figure", "aria-label": "score" },
        result.score === null ? "left out" : figure(result.score))));
    this.node.append(this.bar(), ...this.remarks());
    if (result.objectives) this.node.append(objectiveBars(result, column.objectives));
    if (!this.tokens?.length) {
      this.node.append(make("p", { class: "tokens" }, column.texts[result.index] ?? ""));
      return;
    }
    this.node.append(this.why());
    const select = (i, layer) => this.select(i, layer);
    this.heat = new HeatMap(this.tokens, `${name}, token by token`, select);
    this.running = new RunningScore(this.tokens, column.range, select);
    this.readout = make("p", { class: "readout", "aria-hidden": "true" }, "Point at a token for its figures.");
    this.node.append(this.heat.node, this.readout, this.running.node);
    if (result.layer_scores && result.layers.length > 1) {
      this.layers = new LayerMap(result, column.layerScale, name, select);
      this.voice = make("p", { class: "unseen", "aria-live": "polite" });
      this.node.append(this.layers.node, this.voice);
    }
  }

  bar() {
    const { lowest, highest } = this.column;
    const share = highest > lowest ? (this.result.score - lowest) / (highest - lowest) : 1;
    const fill = make("i");
    fill.style.width = this.result.score === null ? "0" : `${3 + 97 * share}%`;
    return make("div", { class: "bar", "aria-hidden": "true" }, fill);
  }

  remarks() {
    const { truncation, unfinished, warnings = [] } = this.result;
    const said = [];
    if (truncation) {
      const side = truncation.side === "prompt" ? "the beginning of the question" : "the end of the answer";
      said.push(`cut: ${counted(truncation.dropped, "token")} of ${side}`);
    }
    if (unfinished) said.push("without an end of turn");
    const chips = said.map((words) => make("span", { class: "chip" }, words));
    const notes = warnings.map((words) => make("p", { class: "muted" }, words));
    return chips.length ? [make("p", { class: "chips row" }, ...chips), ...notes] : notes;
  }

  /** The tokens that did most, in a sentence. */
  why() {
    const { isOfOneToken: isOne } = this.column;
    const of = (t, i) => (isOne ? (i ? t.running - this.tokens[i - 1].running : 0) : t.contribution);
    const parts = this.tokens.map((t, i) => ({ i, value: of(t, i) })).sort((a, b) => b.value - a.value);
    const most = Math.max(...parts.map((p) => Math.abs(p.value)));
    const worth = (p) => Math.abs(p.value) >= 0.2 * most;
    const up = parts.filter((p) => p.value > 0 && worth(p)).slice(0, MOST_NAMED);
    const down = parts.filter((p) => p.value < 0 && worth(p)).slice(-MOST_NAMED).reverse();
    const chips = (found, kind) => found.flatMap((p, k) =>
      [k ? ", " : "", ...this.inContext(p.i, kind), ` ${signed(p.value)}`]);
    const words = make("p", { class: "why" });
    if (up.length) words.append(isOne ? "Rises most at " : "Raised most by ", ...chips(up, "up"));
    if (up.length && down.length) words.append("; ");
    if (down.length) {
      const verb = isOne ? "falls most at " : "lowered most by ";
      words.append(up.length ? verb : verb[0].toUpperCase() + verb.slice(1), ...chips(down, "down"));
    }
    if (up.length || down.length) words.append(".");
    return words;
  }

  /** A token between its neighbours: a digit or a space alone would say little. */
  inContext(i, kind) {
    const near = (k) => (this.tokens[k] && this.tokens[k].text.trim()
      ? [make("span", { class: "near" }, named(this.tokens[k].text, false))] : []);
    const isLast = i === this.tokens.length - 1;
    return [...near(i - 1), make("b", { class: `${kind}3` }, named(this.tokens[i].text, isLast)),
      ...near(i + 1)];
  }

  words(i) {
    const t = this.tokens[i];
    return `adds ${signed(t.contribution)} · reward ${figure(t.reward)} · gate ${figure(t.gate)} · ` +
      `score so far ${figure(t.running)}`;
  }

  select(i, layer) {
    this.mark(i, layer);
    this.column.onSelect(this, i);
  }

  mark(i, layer) {
    const name = named(this.tokens[i].text, i === this.tokens.length - 1);
    const parts = [this.words(i)];
    if (this.layers && layer !== undefined) parts.push(this.layers.words(i, layer));
    this.heat.mark(i, `${name}: ${parts[0]}`);
    this.running.mark(i);
    this.layers?.mark(i, layer);
    this.readout.replaceChildren(make("b", {}, `“${name}”`), ` ${parts.join(" · ")}`);
    if (layer !== undefined && document.activeElement === this.layers?.canvas) {
      this.voice.textContent = `${name}: ${parts[1]}`;
    }
  }
}

/** One reward model's ranking. */
class Column {
  /** `onSelect(card, i)` hears of the token that is pointed at, `onChoose` of two answers to compare. */
  constructor(model, reply, texts, onSelect, onChoose) {
    this.texts = texts;
    this.onSelect = onSelect;
    this.model = model;
    const results = reply.results;
    // Stable, so that ties keep the order of the answers; left out ones come last.
    this.ranked = [...results].sort((a, b) => (b.score ?? -Infinity) - (a.score ?? -Infinity) || 0);
    const scores = results.filter((r) => r.score !== null).map((r) => r.score);
    this.lowest = Math.min(...scores);
    this.highest = Math.max(...scores);
    this.results = results;
    this.range = rangeOf(results);
    this.layerScale = new LayerScale(results);
    this.objectives = new Objectives(results);
    this.isOfOneToken = isOfOneToken(results);
    this.cards = this.ranked.map((result, i) => new Card(result, i + 1, this));
    this.legend = make("div");
    const facts = [model.method, model.backbone].filter(Boolean).join(" on ");
    const notes = (reply.warnings ?? []).map((words) => make("p", { class: "muted" }, words));
    if (!results.some((r) => r.token_scores)) {
      notes.push(make("p", { class: "muted" }, "This model does not say how single tokens count."));
    }
    this.node = make("section", { class: "column", "aria-label": `Reward model ${model.id}` },
      make("h3", {}, model.id), make("p", { class: "muted" }, facts), ...notes, this.legend,
      make("ol", { class: "ranking" }, ...this.cards.map((card) => card.node)));
    if (results.filter((r) => r.objectives).length > 1) {
      this.beside = new SideBySide(results, this.ranked, model.id, onChoose);
      this.node.append(this.beside.node);
    }
  }

  paint(view) {
    // Parts of a head that reads one token would leave all others white.
    const useful = view === "contribution" && this.isOfOneToken ? "running" : view;
    const scale = new Scale(useful, this.results);
    const isShown = this.results.some((r) => r.token_scores);
    this.legend.replaceChildren(...(isShown ? [scale.legend()] : []));
    if (isShown && useful !== view) {
      this.legend.append(make("p", { class: "muted" },
        "One token of each answer holds the whole score here, so the score so far is shown."));
    }
    for (const card of this.cards) card.heat?.paint(scale);
  }
}

/** How two rankings agree, in a sentence. */
function agreement(one, two) {
  const best = (column) => column.ranked[0]?.index;
  const [a, b] = [one, two].map((c) => new Map(c.results.map((r) => [r.index, r.score])));
  const shared = [...a.keys()].filter((k) => a.get(k) !== null && b.get(k) != null);
  let pairs = 0, alike = 0;
  shared.forEach((i, k) => shared.slice(k + 1).forEach((j) => {
    pairs += 1;
    alike += Math.sign(a.get(i) - a.get(j)) === Math.sign(b.get(i) - b.get(j)) ? 1 : 0;
  }));
  const first = best(one) === best(two)
    ? `Both put Answer ${best(one) + 1} first`
    : `${one.model.id} puts Answer ${best(one) + 1} first, ${two.model.id} Answer ${best(two) + 1}`;
  return pairs ? `${first}; ${alike} of ${counted(pairs, "pair")} of answers in the same order.` : `${first}.`;
}
