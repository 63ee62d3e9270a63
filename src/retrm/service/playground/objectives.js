// What each objective adds to a score: bars on each card, and which of them set two answers apart.

const MOST_BARS = 8;

/** Names and reach of all answers of a model, so that their bars compare. */
class Objectives {
  constructor(results) {
    const rows = results.map((r) => r.objectives).filter(Boolean);
    this.names = rows.length ? rows[0].map((part) => part.name) : [];
    const sizes = this.names.map((_, k) => Math.max(...rows.map((parts) => Math.abs(parts[k].contribution))));
    this.reach = Math.max(0, ...sizes);
    const order = this.names.map((_, k) => k).sort((a, b) => sizes[b] - sizes[a]);
    this.large = new Set(order.slice(0, MOST_BARS));
  }
}

/** A bar from the middle; `share` is -1 to 1. */
function barOf(share) {
  const track = make("div", { class: "track", "aria-hidden": "true" });
  if (share) {
    const fill = make("i", { class: share > 0 ? "plus" : "minus" });
    fill.style.width = `${50 * Math.min(1, Math.abs(share))}%`;
    track.append(fill);
  }
  return track;
}

function barRow(name, share, number, how, note = "") {
  const said = note ? [" ", make("span", { class: "rated" }, note)] : [];
  return make("tr", {}, make("th", { scope: "row", class: "name" }, name, ...said), make("td", {}, barOf(share)),
    make("td", { class: "number" }, number), make("td", { class: "how" }, how));
}

function barTable(heads, rows, sum) {
  const [name, bar, how] = heads;
  const columns = ["name", "middle", "number", "how"].map((kind) => make("col", { class: kind }));
  const table = make("table", { class: "bars" }, make("colgroup", {}, ...columns),
    make("thead", {}, make("tr", {}, make("th", { scope: "col", class: "name" }, name),
      make("th", { scope: "col", colspan: 2 }, bar), make("th", { scope: "col", class: "how" }, how))),
    make("tbody", {}, ...rows));
  if (sum) {
    table.append(make("tfoot", {}, make("tr", {}, make("th", { scope: "row", class: "name" }, sum.words),
      make("td"), make("td", { class: "number" }, sum.number), make("td", { class: "how" }, sum.how))));
  }
  return table;
}

/** Rows for a table, and the small ones behind a line that opens. */
function withFew(heads, rows, isSmall, values, sum) {
  const few = rows.filter((_, k) => isSmall(k));
  const table = barTable(heads, rows.filter((_, k) => !isSmall(k)), sum);
  if (!few.length) return [table];
  const rest = values.filter((_, k) => isSmall(k)).reduce((a, b) => a + b, 0);
  return [table, make("details", {},
    make("summary", {}, `${few.length} more of these, smaller; together ${signed(rest)}`),
    barTable(heads, few))];
}

/** The bars of one answer. */
function objectiveBars(result, all) {
  const parts = result.objectives;
  const heads = ["objective", "adds to the score", "score × weight"];
  const rows = parts.map((part) => {
    const isTakenOut = part.adjusted === 0 && part.score !== 0;
    const how = isTakenOut ? "taken out of the others" : `${figure(part.adjusted)} × ${figure(part.gate)}`;
    return barRow(part.name, all.reach ? part.contribution / all.reach : 0, signed(part.contribution), how,
      part.as_rated === null ? "" : `rated ${figure(part.as_rated)}`);
  });
  const sum = { words: "together", number: figure(result.score), how: "= score" };
  return make("div", { class: "objectives" },
    ...withFew(heads, rows, (k) => !all.large.has(k), parts.map((part) => part.contribution), sum));
}

/** Two answers of one model: which objectives decided, the largest difference first. */
class SideBySide {
  /** `onChoose([i, j])` hears of the answers that are chosen, by their numbers in the form. */
  constructor(results, ranked, name, onChoose) {
    this.results = new Map(ranked.filter((r) => r.objectives).map((r) => [r.index, r]));
    this.pair = [...this.results.keys()].slice(0, 2);
    this.selects = [0, 1].map((side) => this.chooser(side, results, onChoose));
    this.said = make("p", { class: "decided", "aria-live": "polite" });
    this.table = make("div");
    this.node = make("section", { class: "panel beside", "aria-label": `Two answers side by side, ${name}` },
      make("h4", {}, "Which objectives decided?"),
      make("div", { class: "row fields" }, ...this.selects), this.said, this.table);
    this.draw();
  }

  chooser(side, results, onChoose) {
    const options = results.filter((r) => r.objectives)
      .map((r) => make("option", { value: r.index }, `Answer ${r.index + 1}`));
    const select = make("select", {}, ...options);
    select.addEventListener("change", () => {
      this.pair[side] = Number(select.value);
      onChoose([...this.pair]);
      this.draw();
    });
    return make("label", {}, side ? "against" : "Compare", select);
  }

  /** Show these two, where this model has judged them. */
  choose(pair) {
    if (!pair.every((index) => this.results.has(index))) return;
    this.pair = [...pair];
    this.draw();
  }

  draw() {
    this.selects.forEach((label, side) => { label.querySelector("select").value = this.pair[side]; });
    const [one, two] = this.pair.map((index) => this.results.get(index));
    const rows = one.objectives.map((part, k) => ({
      name: part.name, own: part.contribution, other: two.objectives[k].contribution,
      value: part.contribution - two.objectives[k].contribution,
    })).sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
    const [a, b] = this.pair.map((index) => `Answer ${index + 1}`);
    this.said.textContent = this.words(a, b, one.score - two.score, rows);
    const reach = Math.abs(rows[0].value);
    const drawn = rows.map((row) => barRow(row.name, reach ? row.value / reach : 0, signed(row.value),
      `${figure(row.own)} − ${bracketed(row.other)}`));
    const sum = { words: "together", number: signed(one.score - two.score),
      how: `${figure(one.score)} − ${bracketed(two.score)}` };
    this.table.replaceChildren(...withFew(["objective", `← for ${b} · for ${a} →`, `${a} − ${b}`], drawn,
      (k) => k >= MOST_BARS, rows.map((row) => row.value), sum));
  }

  words(a, b, gap, rows) {
    if (a === b) return "Choose two different answers.";
    if (gap === 0) return `${a} and ${b} have the same score.`;
    const [ahead, behind, sign] = gap > 0 ? [a, b, 1] : [b, a, -1];
    const most = Math.abs(rows[0].value);
    const worth = (row) => Math.abs(row.value) >= 0.2 * most;
    const named = (found) => listed(found.slice(0, MOST_NAMED).map((r) => `${r.name} ${signed(r.value * sign)}`));
    const pro = rows.filter((row) => row.value * sign > 0 && worth(row));
    const con = rows.filter((row) => row.value * sign < 0 && worth(row));
    const against = con.length ? `; against it ${named(con)}` : "";
    const by = pro.length ? `, by ${named(pro)}` : "";
    return `${ahead} is ahead of ${behind} by ${figure(Math.abs(gap))}${by}${against}.`;
  }
}

/** A number behind a minus. */
const bracketed = (value) => (value < 0 ? `(${figure(value)})` : figure(value));
