// Draws one window: bars, swings and axes on one canvas, mark and crosshair on another above it,
// so that moving the pointer redraws a few lines only. Positions of bars count from the window's
// first bar; those before it are negative.
const MARGIN = { left: 8, top: 24, bottom: 22 };
const LEAST_RIGHT = 66; // pixels for the price axis; more where prices are longer
const NARROW = 640; // pixels below which fewer bars are drawn before the window
const MIN_LABEL = 64; // pixels between labels of the time axis
const HANDLE = 9; // pixels around an edge that take hold of it

export class Chart {
  constructor(plot, base, overlay) {
    this.plot = plot;
    this.canvases = { base, overlay };
    this.window = null;
    this.revealed = false;
    this.mark = { start: null, end: null, active: "end", suggested: false };
    this.cursor = null; // the bar of the crosshair
    this.pointerY = null; // where its price line is; none for a crosshair moved by keys
    this.dragging = false;
    new ResizeObserver(() => this.draw()).observe(plot);
    matchMedia("(prefers-color-scheme: light)").addEventListener("change", () => this.draw());
  }

  show(window) {
    this.window = window;
    this.revealed = false;
    this.cursor = null;
    this.pointerY = null;
    this.draw();
  }

  // ---- places ---------------------------------------------------------------------------------

  fit() {
    const { width, height } = this.plot.getBoundingClientRect();
    const ratio = devicePixelRatio || 1;
    for (const canvas of Object.values(this.canvases)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
    }
    const style = getComputedStyle(document.documentElement);
    const names = [
      "background", "grid", "frame", "text", "faint-text", "rising", "falling", "swing-high",
      "swing-low", "zigzag", "shade", "mark", "on-mark", "boundary",
    ];
    this.colours = Object.fromEntries(names.map((name) => [name, style.getPropertyValue("--" + name).trim()]));
    this.font = "11.5px " + getComputedStyle(document.body).fontFamily;
    this.ratio = ratio;
    this.width = width;
    this.height = height;
    const before = this.window.before;
    this.first = -Math.min(before, width < NARROW ? 12 : before);
    const numAfter = this.window.time.length - before - this.window.length;
    this.stop = this.window.length + (this.revealed ? numAfter : 0);
    this.scale();
    const pen = this.canvases.base.getContext("2d");
    pen.font = this.font;
    const { ticks, digits } = this.priceTicks();
    const widths = ticks.map((price) => pen.measureText(this.priceText(price, digits)).width);
    this.right = Math.max(LEAST_RIGHT, Math.ceil(Math.max(...widths)) + 10);
  }

  scale() {
    const ends = (from, stop) => {
      let [low, high] = [Infinity, -Infinity];
      for (let t = from; t < stop; t++) {
        low = Math.min(low, this.price("low", t));
        high = Math.max(high, this.price("high", t));
      }
      return [low, high];
    };
    const [low, high] = ends(0, this.stop);
    const [lowest, highest] = ends(this.first, this.stop);
    const span = high - low || Math.abs(high) * 0.01 || 1;
    // Bars before the window may leave the picture, rather than flatten it.
    this.low = Math.max(lowest, low - 0.3 * span) - 0.05 * span;
    this.high = Math.min(highest, high + 0.3 * span) + 0.05 * span;
  }

  price(name, t) { return this.window[name][t + this.window.before]; }
  time(t) { return this.window.time[t + this.window.before]; }
  plotWidth() { return Math.max(this.width - MARGIN.left - this.right, 1); }
  plotHeight() { return Math.max(this.height - MARGIN.top - MARGIN.bottom, 1); }
  step() { return this.plotWidth() / (this.stop - this.first); }
  left(t) { return MARGIN.left + (t - this.first) * this.step(); } // left border of a bar
  middle(t) { return this.left(t + 0.5); }
  y(price) { return MARGIN.top + (this.high - price) / (this.high - this.low) * this.plotHeight(); }
  crisp(pixels) { return (Math.round(pixels * this.ratio - 0.5) + 0.5) / this.ratio; }

  barAt(x) {
    const t = Math.floor(this.first + (x - MARGIN.left) / this.step());
    return Math.min(Math.max(t, this.first), this.stop - 1);
  }

  priceAt(y) { return this.high - (y - MARGIN.top) / this.plotHeight() * (this.high - this.low); }
  inWindow(t) { return Math.min(Math.max(t, 0), this.window.length - 1); }

  // Which edge of the mark lies at x, if any does.
  edgeAt(x) {
    if (this.mark.start === null) return null;
    const toStart = Math.abs(x - this.left(this.mark.start));
    const toEnd = Math.abs(x - this.left(this.mark.end + 1));
    if (Math.min(toStart, toEnd) > HANDLE) return null;
    return toStart < toEnd ? "start" : "end";
  }

  // ---- drawing --------------------------------------------------------------------------------

  draw() {
    if (!this.window) return;
    this.fit();
    const pen = this.canvases.base.getContext("2d");
    pen.clearRect(0, 0, this.width, this.height);
    this.drawAxes(pen);
    pen.save();
    pen.beginPath();
    pen.rect(MARGIN.left, MARGIN.top, this.plotWidth(), this.plotHeight());
    pen.clip();
    this.drawPauses(pen);
    this.drawSwings(pen);
    this.drawCandles(pen);
    pen.restore();
    this.drawOverlay();
  }

  line(pen, x0, y0, x1, y1, colour, dash = []) {
    pen.strokeStyle = colour;
    pen.lineWidth = 1;
    pen.setLineDash(dash);
    pen.beginPath();
    pen.moveTo(x0, y0);
    pen.lineTo(x1, y1);
    pen.stroke();
    pen.setLineDash([]);
  }

  drawAxes(pen) {
    const { colours } = this;
    const [right, bottom] = [MARGIN.left + this.plotWidth(), MARGIN.top + this.plotHeight()];
    pen.textBaseline = "middle";
    pen.textAlign = "left";
    const { ticks, digits } = this.priceTicks();
    for (const price of ticks) {
      const y = this.crisp(this.y(price));
      this.line(pen, MARGIN.left, y, right, y, colours.grid);
      pen.fillStyle = colours["faint-text"];
      pen.fillText(this.priceText(price, digits), right + 6, y);
    }
    pen.textAlign = "center";
    for (const t of this.timeTicks()) {
      const x = this.crisp(this.middle(t));
      this.line(pen, x, MARGIN.top, x, bottom, colours.grid);
      pen.fillStyle = colours["faint-text"];
      pen.fillText(this.window.tick_text[t + this.window.before], x, bottom + 12);
    }
    // What is not of the window lies in the shade.
    pen.fillStyle = colours.shade;
    for (const [from, stop] of [[this.first, 0], [this.window.length, this.stop]]) {
      pen.fillRect(this.left(from), MARGIN.top, this.left(stop) - this.left(from), this.plotHeight());
    }
    for (const t of [0, this.window.length].filter((bar) => bar < this.stop)) {
      const x = this.crisp(this.left(t));
      this.line(pen, x, MARGIN.top, x, bottom, colours.boundary, [3, 3]);
    }
    pen.strokeStyle = colours.frame;
    pen.strokeRect(this.crisp(MARGIN.left), this.crisp(MARGIN.top), this.plotWidth(), this.plotHeight());
  }

  drawCandles(pen) {
    const wick = Math.max(1, Math.round(this.ratio)) / this.ratio;
    // A body as wide as an odd number of wicks stands evenly around its own.
    const room = Math.floor(0.72 * this.step() / wick);
    const body = Math.max(room - (room + 1) % 2, 1) * wick;
    for (let t = this.first; t < this.stop; t++) {
      const [open, close] = [this.price("open", t), this.price("close", t)];
      const colour = close >= open ? this.colours.rising : this.colours.falling;
      pen.globalAlpha = t < 0 || t >= this.window.length ? 0.38 : 1;
      pen.fillStyle = colour;
      const x = Math.round((this.middle(t) - wick / 2) * this.ratio) / this.ratio;
      const top = this.y(this.price("high", t));
      pen.fillRect(x, top, wick, Math.max(this.y(this.price("low", t)) - top, wick));
      const [upper, lower] = [this.y(Math.max(open, close)), this.y(Math.min(open, close))];
      pen.fillRect(x + wick / 2 - body / 2, upper, body, Math.max(lower - upper, wick));
    }
    pen.globalAlpha = 1;
  }

  // Bars stand side by side, however long nothing was traded between them.
  drawPauses(pen) {
    pen.textAlign = "left";
    pen.textBaseline = "middle";
    let free = MARGIN.left; // where the last text ends
    for (const { at, text } of this.window.pauses) {
      if (at <= this.first || at >= this.stop) continue;
      const x = this.crisp(this.left(at));
      this.line(pen, x, MARGIN.top, x, MARGIN.top + this.plotHeight(), this.colours["faint-text"], [1, 3]);
      const from = Math.min(x + 5, MARGIN.left + this.plotWidth() - pen.measureText(text).width - 5);
      if (from < free) continue;
      pen.fillStyle = this.colours["faint-text"];
      pen.fillText(text, from, MARGIN.top + this.plotHeight() - 11);
      free = from + pen.measureText(text).width + 8;
    }
  }

  drawSwings(pen) {
    // A swing that only hidden bars confirm is not known yet.
    const known = this.window.swings.filter((swing) => swing.confirmed < this.stop);
    pen.strokeStyle = this.colours.zigzag;
    pen.globalAlpha = 0.6; // candles come first
    pen.lineWidth = 1;
    pen.beginPath();
    known.forEach((swing, i) => {
      pen[i ? "lineTo" : "moveTo"](this.middle(swing.at), this.y(swing.price));
    });
    pen.stroke();
    pen.globalAlpha = 1;
    const size = Math.min(Math.max(0.45 * this.step(), 3), 5);
    for (const { high, at, price } of known) {
      const [x, y, sign] = [this.middle(at), this.y(price) + (high ? -5 : 5), high ? -1 : 1];
      pen.fillStyle = this.colours[high ? "swing-high" : "swing-low"];
      pen.beginPath();
      pen.moveTo(x, y);
      pen.lineTo(x - size, y + sign * 1.6 * size);
      pen.lineTo(x + size, y + sign * 1.6 * size);
      pen.fill();
    }
  }

  drawOverlay() {
    if (!this.window) return;
    const pen = this.canvases.overlay.getContext("2d");
    pen.font = this.font;
    pen.clearRect(0, 0, this.width, this.height);
    if (this.mark.start !== null) this.drawMark(pen);
    if (this.cursor !== null) this.drawCrosshair(pen);
  }

  drawMark(pen) {
    const { mark, colours } = this;
    const [x0, x1] = [this.left(mark.start), this.left(mark.end + 1)];
    const [top, height] = [MARGIN.top, this.plotHeight()];
    pen.fillStyle = colours.mark;
    pen.globalAlpha = mark.suggested ? 0.1 : 0.2;
    pen.fillRect(x0, top, x1 - x0, height);
    pen.globalAlpha = 1;
    for (const [edge, x] of [["start", x0], ["end", x1]]) {
      this.line(pen, this.crisp(x), top, this.crisp(x), top + height, colours.mark, mark.suggested ? [5, 4] : []);
      const active = !mark.suggested && edge === mark.active;
      const [wide, tall] = active ? [8, 34] : [6, 22];
      pen.beginPath();
      pen.roundRect(x - wide / 2, top + height / 2 - tall / 2, wide, tall, 3);
      pen.fillStyle = active || mark.suggested ? colours.mark : colours.background;
      pen.fill();
      pen.strokeStyle = colours.mark;
      pen.lineWidth = 1.5;
      pen.stroke();
    }
    const bars = mark.end - mark.start + 1;
    const text = (mark.suggested ? mark.by + ": " : "") + (bars === 1 ? "1 bar" : bars + " bars");
    this.tag(pen, text, (x0 + x1) / 2, top + 11, colours.mark, colours["on-mark"], "center");
  }

  drawCrosshair(pen) {
    const { colours } = this;
    const x = this.crisp(this.middle(this.cursor));
    const [right, bottom] = [MARGIN.left + this.plotWidth(), MARGIN.top + this.plotHeight()];
    // Within a drag the edge is the line.
    if (!this.dragging) this.line(pen, x, MARGIN.top, x, bottom, colours["faint-text"], [4, 3]);
    const clock = new Date(this.time(this.cursor)).toISOString().slice(11, 16);
    this.tag(pen, `bar ${this.cursor} · ${clock}`, x, bottom + 11, colours.frame, colours.text, "center");
    if (this.pointerY === null) return;
    const y = this.crisp(this.pointerY);
    this.line(pen, MARGIN.left, y, right, y, colours["faint-text"], [4, 3]);
    this.tag(pen, this.priceText(this.priceAt(y)), right + 3, y, colours.frame, colours.text, "left");
  }

  tag(pen, text, x, y, back, front, align) {
    const width = pen.measureText(text).width + 10;
    const wanted = align === "center" ? x - width / 2 : x;
    const from = Math.min(Math.max(wanted, 1), this.width - width - 1);
    pen.fillStyle = back;
    pen.beginPath();
    pen.roundRect(from, y - 9, width, 18, 3);
    pen.fill();
    pen.fillStyle = front;
    pen.textAlign = "left";
    pen.textBaseline = "middle";
    pen.fillText(text, from + 5, y + 0.5);
  }

  // ---- labels of the axes ---------------------------------------------------------------------

  priceText(price, digits = this.window.decimals) {
    return price.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  }

  priceTicks() {
    const rough = (this.high - this.low) / Math.max(this.plotHeight() / 48, 2);
    const power = 10 ** Math.floor(Math.log10(rough));
    const nice = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
    const step = Math.max(nice, 10 ** -this.window.decimals);
    const ticks = [];
    for (let n = Math.ceil(this.low / step); n * step <= this.high; n++) ticks.push(n * step);
    return { ticks, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
  }

  // The coarsest steps of time that fit, a minimum apart.
  timeTicks() {
    const spacing = Math.max(1, Math.ceil(MIN_LABEL / this.step()));
    const rank = (t) => this.window.tick_rank[t + this.window.before];
    const bars = Array.from({ length: this.stop - this.first }, (_, i) => this.first + i);
    const wanted = Math.max(1, Math.floor(bars.length / spacing));
    let level = 1;
    while (bars.filter((t) => rank(t) >= level).length > wanted) level += 1;
    const chosen = [];
    for (const t of bars.filter((bar) => rank(bar) >= level).sort((a, b) => rank(b) - rank(a) || a - b)) {
      if (chosen.every((other) => Math.abs(t - other) >= spacing)) chosen.push(t);
    }
    return chosen;
  }
}
