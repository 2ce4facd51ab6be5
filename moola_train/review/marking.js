// Marks the expansion on a chart by pointer and keys. Calls `changed` whenever the mark is another
// one, and `moved` whenever the crosshair is.
const FIVE = 5; // bars at a time, with Shift
const STILL = 3; // pixels that a hand may tremble in a click

export class Marking {
  constructor(chart, changed, moved) {
    this.chart = chart;
    this.changed = changed;
    this.moved = moved;
    this.drag = null; // the edge that stays, while the other one follows the pointer
    const { plot } = chart;
    plot.addEventListener("pointerdown", (event) => this.press(event));
    plot.addEventListener("pointermove", (event) => this.follow(event));
    plot.addEventListener("pointerup", () => this.release());
    plot.addEventListener("pointercancel", () => this.release());
    plot.addEventListener("pointerleave", () => { if (!this.drag) this.point(null, null); });
  }

  // Put bars start to end into the mark; null for none.
  set(start, end, active = "end") {
    this.chart.mark = { start, end, active, suggested: false };
    this.chart.drawOverlay();
    this.changed();
  }

  press(event) {
    if (event.button !== 0 || !this.chart.window) return;
    const { mark } = this.chart;
    const x = this.x(event);
    const edge = this.chart.edgeAt(x);
    const bar = this.chart.inWindow(this.chart.barAt(x));
    const anchor = edge === "start" ? mark.end : edge === "end" ? mark.start : bar;
    this.drag = { anchor, from: x, begun: edge !== null };
    this.chart.plot.setPointerCapture(event.pointerId);
    this.follow(event);
  }

  follow(event) {
    if (!this.chart.window) return;
    const x = this.x(event);
    this.point(this.chart.barAt(x), event.clientY - this.chart.plot.getBoundingClientRect().top);
    if (!this.drag) {
      this.chart.plot.classList.toggle("on-edge", this.chart.edgeAt(x) !== null);
      return;
    }
    // A click that marks nothing must not wipe out a mark either.
    if (!this.drag.begun && Math.abs(x - this.drag.from) < STILL) return;
    this.drag.begun = true;
    this.chart.dragging = true;
    const bar = this.chart.inWindow(this.chart.cursor);
    const { anchor } = this.drag;
    this.set(Math.min(anchor, bar), Math.max(anchor, bar), bar < anchor ? "start" : "end");
  }

  release() {
    this.drag = null;
    this.chart.dragging = false;
    this.chart.drawOverlay();
  }

  x(event) { return event.clientX - this.chart.plot.getBoundingClientRect().left; }

  point(bar, y) {
    this.chart.cursor = bar;
    this.chart.pointerY = y;
    this.chart.drawOverlay();
    this.moved();
  }

  // Do what a key says; tells whether it says something.
  key(name, shift) {
    const step = shift ? FIVE : 1;
    const actions = {
      ArrowLeft: () => this.move(-step),
      ArrowRight: () => this.move(step),
      ArrowUp: () => this.choose("start"),
      ArrowDown: () => this.choose("end"),
      a: () => this.edgeToCursor("start"),
      e: () => this.edgeToCursor("end"),
      Delete: () => this.set(null, null),
      Backspace: () => this.set(null, null),
      f: () => this.reveal(),
    };
    const action = actions[name];
    if (action) action();
    return action !== undefined;
  }

  move(bars) {
    const { mark, window } = this.chart;
    if (mark.start === null) {
      const from = this.chart.cursor ?? Math.floor(window.length / 2) - bars;
      this.point(this.chart.inWindow(from + bars), null);
      return;
    }
    const to = this.chart.inWindow(mark[mark.active] + bars);
    if (mark.active === "start") this.set(Math.min(to, mark.end), mark.end, "start");
    else this.set(mark.start, Math.max(to, mark.start), "end");
  }

  choose(active) {
    const { mark } = this.chart;
    if (mark.start !== null) this.set(mark.start, mark.end, active);
  }

  edgeToCursor(edge) {
    const { mark, cursor } = this.chart;
    if (cursor === null) return;
    const bar = this.chart.inWindow(cursor);
    const other = mark.start === null ? bar : mark[edge === "start" ? "end" : "start"];
    if (edge === "start") this.set(bar, Math.max(bar, other), mark.start === null ? "end" : "start");
    else this.set(Math.min(bar, other), bar, "end");
  }

  reveal() {
    this.chart.revealed = !this.chart.revealed;
    this.chart.draw();
  }
}
