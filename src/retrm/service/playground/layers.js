// Layer x token: what each layer adds to the reward of each token, against that layer's average.
//
// The head's bias belongs to no layer, so the average of a layer is a matter of how the bias is shared
// out; only differences between tokens tell something.

const GUTTER = 62, FOOT = 4;

class LayerScale {
  constructor(results) {
    const rows = results.flatMap((r) => r.layer_scores ?? []);
    const n = rows[0]?.length ?? 0;
    this.means = Array.from({ length: n }, (_, l) => rows.reduce((sum, row) => sum + row[l], 0) / rows.length);
    const far = rows.flatMap((row) => row.map((value, l) => Math.abs(value - this.means[l])));
    this.reach = far.length ? quantile(far, FACTS.quantile) || 1 : 1;
  }

  colour(value, l) {
    const share = Math.max(-1, Math.min(1, (value - this.means[l]) / this.reach));
    const colour = FACTS.colours[share > 0 ? "up" : "down"];
    // Linear in opacity, but strong enough that single layers of a thin map are seen.
    return `rgba(${colour.join(",")},${(Math.abs(share) * 0.9).toFixed(3)})`;
  }
}

class LayerMap {
  constructor(result, scale, label, onSelect) {
    Object.assign(this, { rows: result.layer_scores, layers: result.layers, scale, onSelect });
    this.at = { token: -1, layer: result.layers.length - 1 };
    this.canvas = make("canvas", { tabindex: 0, role: "application",
      "aria-roledescription": "heat map", "aria-label": `${label}: ${this.layers.length} layers by ` +
        `${this.rows.length} tokens; arrows move. ${this.strongest(result)}` });
    this.node = make("div", { class: "layers" }, make("div", { class: "scroll" }, this.canvas),
      make("p", {}, "layers from the embedding (below) to the last (above), tokens from left to right; blue: " +
        "the layer raises the reward here, orange: lowers it, against its average over these answers"));
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("keydown", (event) => this.move(event));
    this.canvas.addEventListener("focus", () => onSelect(Math.max(0, this.at.token)));
    this.watch = new ResizeObserver(() => this.draw());
    this.watch.observe(this.node);
  }

  strongest(result) {
    let best = { size: -1 };
    this.rows.forEach((row, t) => row.forEach((value, l) => {
      const change = value - this.scale.means[l];
      if (Math.abs(change) > best.size) best = { size: Math.abs(change), change, t, l };
    }));
    const text = named(result.token_scores[best.t].text, best.t === this.rows.length - 1);
    return `Strongest: layer ${this.layers[best.l]} at “${text}”, ${signed(best.change)}.`;
  }

  draw() {
    const room = this.node.clientWidth - GUTTER;
    if (room <= 0) return;
    const [nTokens, nLayers] = [this.rows.length, this.layers.length];
    this.cell = { w: Math.max(4, Math.min(22, room / nTokens)), h: Math.max(6, Math.min(18, 240 / nLayers)) };
    const width = GUTTER + this.cell.w * nTokens, height = this.cell.h * nLayers + FOOT;
    const sharp = window.devicePixelRatio || 1;
    Object.assign(this.canvas, { width: Math.ceil(width * sharp), height: Math.ceil(height * sharp) });
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    this.pen = this.canvas.getContext("2d");
    this.pen.setTransform(sharp, 0, 0, sharp, 0, 0);
    this.paint();
  }

  paint() {
    if (!this.pen) return;
    const { w, h } = this.cell, n = this.layers.length, ink = getComputedStyle(document.body);
    this.pen.clearRect(0, 0, GUTTER + w * this.rows.length, h * n + FOOT);
    this.rows.forEach((row, t) => row.forEach((value, l) => {
      this.pen.fillStyle = this.scale.colour(value, l);
      this.pen.fillRect(GUTTER + t * w, (n - 1 - l) * h, w > 6 ? w - 0.5 : w, h - 0.5);
    }));
    this.pen.fillStyle = ink.color;
    this.pen.font = "11px system-ui,sans-serif";
    this.pen.textAlign = "right";
    this.pen.textBaseline = "middle";
    const every = Math.max(1, Math.ceil(16 / h), Math.round(n / 6));
    for (let l = 0; l < n; l++) {
      // The last layer is always named; its neighbour would touch it.
      if (l !== n - 1 && (l % every || n - 1 - l < Math.ceil(14 / h))) continue;
      // The outermost would be cut in half by the edge.
      const y = Math.max(6, Math.min(h * n - 4, (n - 1 - l + 0.5) * h));
      this.pen.fillText(`layer ${this.layers[l]}`, GUTTER - 6, y);
    }
    if (this.at.token < 0) return;
    this.pen.strokeStyle = ink.color;
    this.pen.strokeRect(GUTTER + this.at.token * w, 0.5, w, h * n - 1);
    if (this.isAtLayer) {
      this.pen.lineWidth = 2;
      this.pen.strokeRect(GUTTER + this.at.token * w, (n - 1 - this.at.layer) * h, w, h);
      this.pen.lineWidth = 1;
    }
  }

  point(event) {
    if (!this.cell) return;
    const t = Math.floor((event.offsetX - GUTTER) / this.cell.w);
    const l = this.layers.length - 1 - Math.floor(event.offsetY / this.cell.h);
    if (t < 0 || t >= this.rows.length || l < 0 || l >= this.layers.length) return;
    this.at.layer = l;
    this.onSelect(t, l);
  }

  move(event) {
    const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const t = Math.max(0, Math.min(this.rows.length - 1, this.at.token + step[0]));
    this.at.layer = Math.max(0, Math.min(this.layers.length - 1, this.at.layer + step[1]));
    this.onSelect(t, this.at.layer);
  }

  /** `layer 12 adds +0.031, its average here is +0.010`. */
  words(t, l) {
    return `layer ${this.layers[l]} adds ${signed(this.rows[t][l])} to the reward, ` +
      `${signed(this.rows[t][l] - this.scale.means[l])} against its average`;
  }

  mark(t, l) {
    this.at.token = t;
    this.isAtLayer = l !== undefined;
    this.paint();
  }
}
