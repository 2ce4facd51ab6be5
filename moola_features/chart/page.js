"use strict";
// Positions count from the store's first bar. Only what is in view, and as much again on either
// side for dragging, is handed to Plotly: it is slow on tens of thousands of candles.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const colours = data.colours;
  const numBars = data.time.length;
  const first = data.first;
  const stop = first + numBars;
  const plot = document.getElementById("plot");
  const hint = document.getElementById("hint");
  const help = hint.textContent;
  const picker = document.getElementById("picker");
  const margin = { l: 12, r: 92, t: 6, b: 28 };
  const minView = 10;
  const labelWidth = 85; // pixels between labels of the time axis
  const priceWeight = 6; // the price's height in panels
  const outer = [first - 1.5, stop + 0.5 + 0.01 * numBars];
  let view = openingView();
  let focus = data.focus;
  let pointer = null; // the last mouse event over the plot, for the crosshair to stay true

  // ---- the view -------------------------------------------------------------------------------

  function openingView() {
    const num = Math.min(data.view_bars, numBars);
    if (num === numBars) return outer.slice();
    if (data.focus === null) return [outer[1] - num, outer[1]];
    return [data.focus - num / 2, data.focus + num / 2];
  }

  function show(left, right) {
    const span = Math.min(Math.max(right - left, minView), outer[1] - outer[0]);
    const start = (left + right - span) / 2;
    const low = Math.min(Math.max(start, outer[0]), outer[1] - span);
    view = [low, low + span];
    draw();
  }

  function showBars(num) {
    // A view that touches the newest bar keeps it; any other keeps its middle.
    if (view[1] >= stop) return show(outer[1] - num, outer[1]);
    const middle = (view[0] + view[1]) / 2;
    show(middle - num / 2, middle + num / 2);
  }

  function move(share) {
    const step = share * (view[1] - view[0]);
    show(view[0] + step, view[1] + step);
  }

  function goTo(time) {
    let low = 0;
    let high = numBars; // the last bar that starts at `time` or before is low - 1 in the end
    while (low < high) {
      const middle = (low + high) >> 1;
      if (data.time[middle] <= time) low = middle + 1;
      else high = middle;
    }
    focus = first + Math.max(low - 1, 0);
    const span = Math.min(view[1] - view[0], data.view_bars);
    show(focus - span / 2, focus + span / 2);
  }

  const clampBar = (position) => Math.min(Math.max(Math.round(position), first), stop - 1);
  const barsInView = () => [clampBar(Math.ceil(view[0])), clampBar(Math.floor(view[1]))];

  // ---- words ----------------------------------------------------------------------------------

  const grouped = (value, decimals) =>
    value.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });

  function priceText(value) {
    // Some feeds have prices off their own grid: those are written out.
    const exact = (String(value).split(".")[1] || "").length;
    return grouped(value, Math.max(data.decimals, Math.min(exact, data.decimals + 4)));
  }

  function featureText(value) {
    return Math.abs(value) >= 0.01 || value === 0 ? value.toFixed(3) : value.toPrecision(3);
  }

  function timeText(index) {
    const moment = new Date(data.time[index]);
    const day = moment.toLocaleDateString("en-GB", { weekday: "short", timeZone: "UTC" });
    return day + " " + moment.toISOString().replace("T", " ").replace(/(:00)?\.000Z$|Z$/, "");
  }

  // ---- traces ---------------------------------------------------------------------------------

  function candles(from, to, size) {
    const trace = { x: [], open: [], high: [], low: [], close: [] };
    for (let i = from - first; i < to - first; i += size) {
      const end = Math.min(i + size, numBars);
      let high = data.high[i];
      let low = data.low[i];
      for (let k = i + 1; k < end; k++) {
        high = Math.max(high, data.high[k]);
        low = Math.min(low, data.low[k]);
      }
      trace.x.push(first + i + (size - 1) / 2);
      trace.open.push(data.open[i]);
      trace.high.push(high);
      trace.low.push(low);
      trace.close.push(data.close[end - 1]);
    }
    const side = (colour) => ({ line: { color: colour, width: 1 }, fillcolor: colour });
    return {
      ...trace, type: "candlestick", yaxis: "y", whiskerwidth: 0,
      increasing: side(colours.rising), decreasing: side(colours.falling),
    };
  }

  function shownMarks() {
    const count = data.swings.index.reduce((sum, x) => sum + (x >= view[0] && x <= view[1]), 0);
    return Object.fromEntries(Object.entries(data.max_swings).map(([mark, most]) => [mark, count <= most]));
  }

  function swingTraces(from, to, shows) {
    const swings = data.swings;
    const zigzag = { x: [], y: [] };
    const sides = [true, false].map(() => ({ x: [], y: [], confirmedX: [], confirmedY: [], pathX: [], pathY: [] }));
    for (let s = 0; s < swings.index.length; s++) {
      // One swing beyond either end, so that the line leaves the view instead of ending in it.
      if (swings.index[Math.min(s + 1, swings.index.length - 1)] < from) continue;
      if (s > 0 && swings.index[s - 1] >= to) break;
      if (s > 0 && swings.segment[s] !== swings.segment[s - 1]) {
        zigzag.x.push(null);
        zigzag.y.push(null);
      }
      zigzag.x.push(swings.index[s]);
      zigzag.y.push(swings.price[s]);
      const side = sides[swings.is_high[s] ? 0 : 1];
      side.x.push(swings.index[s]);
      side.y.push(swings.price[s]);
      const confirmed = swings.confirmed_index[s];
      if (confirmed < first) continue;
      const close = data.close[confirmed - first];
      side.confirmedX.push(confirmed);
      side.confirmedY.push(close);
      side.pathX.push(swings.index[s], confirmed, null);
      side.pathY.push(swings.price[s], close, null);
    }
    if (!shows.zigzag) return [];
    const line = { ...zigzag, type: "scatter", mode: "lines", yaxis: "y", line: { color: colours.zigzag, width: 1.2 } };
    return [line, ...sides.flatMap((side, s) => marks(side, s === 0, shows))];
  }

  function marks(side, isHigh, shows) {
    const color = isHigh ? colours.swing_high : colours.swing_low;
    const common = { type: "scatter", yaxis: "y" };
    const path = { ...common, x: side.pathX, y: side.pathY, mode: "lines", line: { color, width: 1, dash: "dot" } };
    const ring = {
      ...common, x: side.confirmedX, y: side.confirmedY, mode: "markers",
      marker: { symbol: "circle-open", size: 5.5, color, line: { width: 1.2 } },
    };
    const triangle = {
      // Turned triangles keep their distance from the extreme in pixels at every zoom.
      ...common, x: side.x, y: side.y, mode: "markers",
      marker: { symbol: "triangle-up", angle: isHigh ? 180 : 0, standoff: 7, size: 8, color, line: { width: 0 } },
    };
    return [...(shows.confirmation ? [path, ring] : []), ...(shows.triangle ? [triangle] : [])];
  }

  function means(values, from, to, size) {
    const found = { x: [], y: [] };
    for (let i = from - first; i < to - first; i += size) {
      const end = Math.min(i + size, numBars);
      let sum = 0;
      for (let k = i; k < end; k++) sum += values[k];
      found.x.push(first + i + (size - 1) / 2);
      found.y.push(sum / (end - i));
    }
    return found;
  }

  function panelTraces(panel, yaxis, from, to, size) {
    const shown = means(panel.values, from, to, size);
    const common = { yaxis, type: "scatter", mode: "lines" };
    if (!panel.stems) return [{ ...common, ...shown, line: { color: panel.colour, width: 1.3 } }];
    // One broken line is far quicker than a bar for each value.
    const width = Math.min(Math.max(0.65 * size * pixelsPerBar(), 0.7), 9);
    return [true, false].map((positive) => {
      const x = [];
      const y = [];
      shown.y.forEach((value, i) => {
        if (value === 0 || value > 0 !== positive) return;
        x.push(shown.x[i], shown.x[i], null);
        y.push(0, value, null);
      });
      const color = panelColour(panel, positive ? 1 : -1);
      return { ...common, x, y, line: { color, width, simplify: false } };
    });
  }

  // ---- layout ---------------------------------------------------------------------------------

  const plotWidth = () => Math.max(plot.clientWidth - margin.l - margin.r, 1);
  const plotHeight = () => Math.max(plot.clientHeight - margin.t - margin.b, 1);
  const pixelsPerBar = () => plotWidth() / (view[1] - view[0]);
  const axisName = (row) => (row === 0 ? "y" : "y" + (row + 1));

  function domain(row) {
    const total = priceWeight + data.panels.length;
    const top = row === 0 ? total : total - priceWeight - row + 1;
    return [(top - (row === 0 ? priceWeight : 1)) / total, top / total];
  }

  function priceRange(from, to) {
    let low = Infinity;
    let high = -Infinity;
    for (let i = from - first; i <= to - first; i++) {
      low = Math.min(low, data.low[i]);
      high = Math.max(high, data.high[i]);
    }
    const height = high - low || Math.abs(high) * 0.01 || 1;
    return [low - 0.07 * height, high + 0.13 * height]; // the readout stands at the top
  }

  // Labels keep clear of the tag of the last value.
  function clearOf(value, row, height) {
    const [bottom, top] = domain(row);
    const room = 15 * height / (plotHeight() * (top - bottom));
    return (tick) => Math.abs(tick - value) > room;
  }

  function priceTicks([low, high], close) {
    const rough = (high - low) / 9;
    const power = 10 ** Math.floor(Math.log10(rough));
    const nice = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
    const step = Math.max(nice, 10 ** -data.decimals);
    const ticks = [];
    for (let n = Math.ceil(low / step); n * step <= high; n++) ticks.push(n * step);
    return ticks.filter(clearOf(close, 0, high - low));
  }

  function chooseTicks() {
    // Twin of choose_ticks in scene.py: coarser steps of time first, a minimum apart.
    const [from, to] = barsInView();
    const spacing = Math.max(1, Math.ceil(labelWidth / pixelsPerBar()));
    const wanted = Math.max(1, Math.floor((view[1] - view[0]) / spacing));
    let level = 0;
    let candidates = Array.from({ length: to - from + 1 }, (_, k) => from - first + k);
    while (candidates.length > wanted) {
      level += 1;
      candidates = candidates.filter((i) => data.tick_rank[i] >= level);
    }
    candidates.sort((a, b) => data.tick_rank[b] - data.tick_rank[a] || a - b);
    const chosen = [];
    for (const i of candidates) {
      if (chosen.every((other) => Math.abs(i - other) >= spacing)) chosen.push(i);
    }
    return chosen.sort((a, b) => a - b);
  }

  function shapes(from, to, close, colour) {
    const line = (x, style) => ({ type: "line", xref: "x", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, line: style });
    const found = data.invalid.filter(([a, b]) => b > from && a < to).map(([a, b]) => ({
      type: "rect", xref: "x", yref: "paper", x0: a - 0.5, x1: b - 0.5, y0: 0, y1: 1,
      fillcolor: colours.invalid, opacity: data.invalid_opacity, line: { width: 0 }, layer: "below",
    }));
    for (const boundary of data.boundaries) {
      if (boundary >= from && boundary < to) {
        found.push(line(boundary - 0.5, { color: colours.boundary, width: 1, dash: "dash" }));
      }
    }
    if (focus !== null) found.push(line(focus, { color: colours.focus, width: 1, dash: "dot" }));
    found.push({
      type: "line", xref: "paper", yref: "y", x0: 0, x1: 1, y0: close, y1: close,
      line: { color: colour, width: 1, dash: "dot" },
    });
    return found;
  }

  function notes(from, to) {
    const note = (x, text, color) => ({
      xref: "x", yref: "paper", x, y: 1, yshift: -22, text, showarrow: false,
      xanchor: "left", yanchor: "top", font: { size: 11, color },
    });
    const spacing = labelWidth / pixelsPerBar();
    const found = [];
    let previous = -Infinity;
    data.boundaries.forEach((x, i) => {
      if (x < from || x > to || x - previous < spacing) return;
      if (focus !== null && Math.abs(x - focus) < spacing) return;
      found.push(note(x - 0.5, "gap " + data.gap_texts[i], colours.faint_text));
      previous = x;
    });
    if (focus !== null && focus >= from && focus <= to) {
      found.push(note(focus, timeText(focus - first), colours.focus));
    }
    return found;
  }

  function tag(row, value, text, colour) {
    return {
      xref: "paper", yref: axisName(row), x: 1, y: value, text: "<b>" + text + "</b>", showarrow: false,
      xanchor: "left", xshift: 3, font: { size: 11, color: colours.background }, bgcolor: colour, borderpad: 2,
    };
  }

  function panelColour(panel, value) {
    if (!panel.stems || panel.low >= 0) return panel.colour;
    return value >= 0 ? colours.rising : colours.falling;
  }

  function layout(from, to) {
    const last = to - first;
    const close = data.close[last];
    const closeColour = close >= data.open[last] ? colours.rising : colours.falling;
    const ticks = chooseTicks();
    const range = priceRange(from, to);
    const frame = { showline: true, linecolor: colours.frame, zeroline: false, gridcolor: colours.grid };
    const made = {
      width: plot.clientWidth, height: plot.clientHeight, margin, showlegend: false,
      paper_bgcolor: colours.background, plot_bgcolor: colours.background, hovermode: false, dragmode: "pan",
      font: { family: getComputedStyle(document.body).fontFamily, size: 11.5, color: colours.faint_text },
      xaxis: {
        ...frame, mirror: "all", range: view.slice(),
        anchor: data.panels.length ? axisName(data.panels.length) : "y",
        rangeslider: { visible: false }, tickvals: ticks.map((i) => first + i),
        ticktext: ticks.map((i) => data.tick_rank[i] < data.day_rank ? data.tick_text[i]
          : `<span style="color:${colours.text}"><b>${data.tick_text[i]}</b></span>`),
      },
      yaxis: {
        ...frame, mirror: true, side: "right", domain: domain(0), range, fixedrange: true,
        tickformat: `,.${data.decimals}f`, tickvals: priceTicks(range, close),
      },
      shapes: shapes(from, to, close, closeColour),
      annotations: [...notes(from, to), tag(0, close, grouped(close, data.decimals), closeColour)],
    };
    data.panels.forEach((panel, i) => {
      const value = panel.values[last];
      const height = panel.high - panel.low;
      const limits = [panel.low - 0.12 * height, panel.high + 0.28 * height]; // its name is at the top
      const ticks = panel.ticks.filter(clearOf(value, i + 1, limits[1] - limits[0]));
      made["yaxis" + (i + 2)] = {
        ...frame, mirror: true, side: "right", domain: domain(i + 1), fixedrange: true,
        range: limits, zeroline: true, zerolinecolor: colours.frame, zerolinewidth: 1,
        tickvals: ticks, ticktext: ticks.map((tick) => String(Number(tick.toPrecision(3)))),
      };
      made.annotations.push(tag(i + 1, value, featureText(value), panelColour(panel, value)));
    });
    return made;
  }

  function draw() {
    const span = view[1] - view[0];
    const size = Math.ceil(span / data.max_candles);
    const shows = shownMarks();
    // Groups begin at multiples of their size, so that candles do not change while one drags.
    const from = first + Math.max(Math.floor((view[0] - span - first) / size) * size, 0);
    const to = Math.min(Math.ceil(view[1] + span), stop);
    const traces = [candles(from, to, size), ...swingTraces(from, to, shows)];
    data.panels.forEach((panel, i) => traces.push(...panelTraces(panel, axisName(i + 1), from, to, size)));
    const [left, right] = barsInView();
    const config = { scrollZoom: true, displayModeBar: false, doubleClick: false, showTips: false };
    const drawn = Plotly.react(plot, traces, layout(left, right), config);
    const joined = size > 1 ? `one candle = ${size} bars, columns are their means` : "";
    const note = [joined, shows.confirmation ? "" : "zoom in for all swing marks"].filter(Boolean).join(" · ");
    hint.textContent = note || help;
    hint.classList.toggle("note", note !== "");
    document.querySelectorAll("button[data-bars]").forEach((button) => {
      const num = button.dataset.bars === "all" ? numBars : Number(button.dataset.bars);
      const whole = span >= outer[1] - outer[0] - 1e-6;
      button.classList.toggle("chosen", button.dataset.bars === "all" ? whole : !whole && Math.round(span) === num);
    });
    if (pointer) follow(pointer);
    else read(right);
    return drawn;
  }

  // ---- readouts and crosshair -----------------------------------------------------------------

  const readouts = document.getElementById("readouts");
  const crosshair = document.getElementById("crosshair");

  function addReadouts() {
    for (let row = 0; row <= data.panels.length; row++) {
      const line = document.createElement("div");
      line.className = row === 0 ? "price" : "panel";
      line.style.left = margin.l + "px";
      line.style.top = `calc(${margin.t}px + (100% - ${margin.t + margin.b}px) * ${1 - domain(row)[1]})`;
      readouts.append(line);
    }
  }

  function write(line, parts) {
    line.replaceChildren(...parts.map(([text, colour]) => {
      const piece = document.createElement(colour ? "b" : "span");
      piece.textContent = text;
      if (colour) piece.style.color = colour;
      return piece;
    }));
  }

  function read(position) {
    const i = position - first;
    const colour = data.close[i] >= data.open[i] ? colours.rising : colours.falling;
    const change = i > 0 ? data.close[i] - data.close[i - 1] : 0;
    const percent = i > 0 && data.close[i - 1] > 0 ? ` (${Math.abs(100 * change / data.close[i - 1]).toFixed(2)} %)` : "";
    const invalid = data.invalid.some(([a, b]) => position >= a && position < b);
    write(readouts.children[0], [
      [timeText(i), colours.text],
      ...["open", "high", "low", "close"].flatMap((name) => [[name[0].toUpperCase()], [priceText(data[name][i]), colour]]),
      [(change >= 0 ? "+" : "−") + grouped(Math.abs(change), data.decimals) + percent, colour],
      [`bar ${grouped(position, 0)}${invalid ? ", not valid" : ""}`],
    ]);
    data.panels.forEach((panel, p) => {
      const value = panel.values[i];
      write(readouts.children[p + 1], [
        [panel.name + " ", panel.colour], [featureText(value), panelColour(panel, value)], ["  " + panel.meaning],
      ]);
    });
  }

  function follow(event) {
    const box = plot.getBoundingClientRect();
    const x = event.clientX - box.left - margin.l;
    const y = event.clientY - box.top - margin.t;
    if (x < 0 || y < 0 || x > plotWidth() || y > plotHeight()) return leave();
    const position = clampBar(view[0] + x / pixelsPerBar());
    const share = 1 - y / plotHeight();
    let row = 0;
    while (row < data.panels.length && share < domain(row)[0]) row += 1;
    const [bottom, top] = domain(row);
    const range = plot.layout[row === 0 ? "yaxis" : "yaxis" + (row + 1)].range;
    const value = range[0] + (share - bottom) / (top - bottom) * (range[1] - range[0]);
    const barX = margin.l + (position - view[0]) * pixelsPerBar();
    const [across, down, valueTag, timeTag] = crosshair.children;
    const place = (element, places) => {
      for (const [name, pixels] of Object.entries(places)) element.style[name] = pixels + "px";
    };
    place(across, { left: margin.l, width: plotWidth(), top: y + margin.t });
    place(down, { left: barX, top: margin.t, height: plotHeight() });
    place(valueTag, { left: margin.l + plotWidth() + 3, top: y + margin.t });
    place(timeTag, { left: Math.min(Math.max(barX, 75), plot.clientWidth - 75), top: margin.t + plotHeight() + 5 });
    valueTag.textContent = row === 0 ? grouped(value, data.decimals) : featureText(value);
    timeTag.textContent = timeText(position - first);
    crosshair.hidden = false;
    pointer = event;
    read(position);
  }

  function leave() {
    pointer = null;
    crosshair.hidden = true;
    read(barsInView()[1]);
  }

  // ---- controls -------------------------------------------------------------------------------

  function pick() {
    const time = Date.parse(picker.value + "Z");
    // A time outside the stretch is refused in the browser's own words, which name the limits.
    if (!Number.isNaN(time) && picker.reportValidity()) goTo(time);
  }

  function onKey(event) {
    if (event.target === picker || event.ctrlKey || event.metaKey || event.altKey) return;
    const span = view[1] - view[0];
    const actions = {
      ArrowLeft: () => move(-0.5), ArrowRight: () => move(0.5),
      "+": () => show(view[0] + span / 4, view[1] - span / 4), "-": () => show(view[0] - span / 2, view[1] + span / 2),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  function hideUnusedLegend() {
    const used = { swings: data.swings.index.length, invalid: data.invalid.length, segments: data.boundaries.length };
    document.querySelectorAll("[data-needs]").forEach((item) => { item.hidden = !used[item.dataset.needs]; });
  }

  addReadouts();
  hideUnusedLegend();
  picker.value = new Date(data.time[(focus ?? stop - 1) - first]).toISOString().slice(0, 19);
  document.querySelector("main").style.minHeight = 300 + 70 * data.panels.length + "px";
  draw().then(() => {
    plot.on("plotly_relayout", (change) => {
      if ("xaxis.range[0]" in change) show(change["xaxis.range[0]"], change["xaxis.range[1]"]);
    });
    plot.on("plotly_doubleclick", () => show(...outer));
    plot.addEventListener("mousemove", follow);
    plot.addEventListener("mouseleave", leave);
    plot.addEventListener("mousedown", () => { crosshair.hidden = true; });
    new ResizeObserver(draw).observe(plot);
    document.addEventListener("keydown", onKey);
    picker.addEventListener("change", pick);
    document.querySelector("form").addEventListener("submit", (event) => { event.preventDefault(); pick(); });
    document.querySelectorAll("button[data-bars]").forEach((button) => button.addEventListener("click", () =>
      button.dataset.bars === "all" ? show(...outer) : showBars(Number(button.dataset.bars))));
    document.querySelectorAll("button[data-move]").forEach((button) =>
      button.addEventListener("click", () => move(0.8 * Number(button.dataset.move))));
    document.documentElement.dataset.ready = "true";
  });
})();
