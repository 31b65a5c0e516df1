"use strict";
// Draws the page's figures with Apache ECharts. Every text that comes from a run becomes a text node or is painted on a
// canvas; it never becomes markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;
  const MISSING = 0, ZERO = 65534, INFINITE = 65535, LAST = 65533;
  // Limits of columns and cells in a panel; beyond them, neighbouring columns are averaged until fewer steps are chosen.
  const WIDEST = 160, CELLS = 8000, NARROWEST = 48;
  // The words of the page's language; {a}, {b}, ... are places.
  const words = data.words;
  const t = (key, ...parts) => words[key].replace(/\{([a-d])\}/g, (_, place) => parts["abcd".indexOf(place)]);
  const mark = (text) => (words["decimal mark"] === "," ? text.replace(/(\d)\.(\d)/g, "$1,$2") : text);
  const count = (n) => n.toLocaleString(words.language === "id" ? "id-ID" : "en-US");
  const charts = new Map();
  let printing = false;

  // --- styles -----------------------------------------------------------------------------------------------
  const dark = () => !printing && root.dataset.theme === "dark";
  const ink = () => getComputedStyle(root).getPropertyValue("--ink").trim();
  const cssValue = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const theme = () => data.themes[dark() ? "dark" : "light"];
  const colourOf = (look) => look[dark() ? "dark" : "light"];
  const chartAt = (id) => {
    if (!charts.has(id)) charts.set(id, echarts.init(byId(id), null, { renderer: "canvas" }));
    return charts.get(id);
  };
  const axisStyle = () => ({
    axisLine: { lineStyle: { color: cssValue("line") } }, axisTick: { lineStyle: { color: cssValue("line") } },
    axisLabel: { color: cssValue("faint"), fontSize: 11 }, nameTextStyle: { color: cssValue("faint"), fontSize: 11 },
    splitLine: { lineStyle: { color: cssValue("line"), opacity: 0.6 } },
  });
  const tooltipStyle = () => ({
    backgroundColor: cssValue("paper"), borderColor: cssValue("line"), textStyle: { color: ink(), fontSize: 13 }, confine: true,
  });
  const lines = (texts) => {
    const box = document.createElement("div");
    box.className = "bubble";
    for (const text of texts) {
      const line = document.createElement("div");
      line.textContent = text;
      box.append(line);
    }
    return box;
  };
  const option = (value, text) => {
    const item = document.createElement("option");
    item.value = value;
    item.textContent = text;
    return item;
  };
  // Labels of a vertical axis, as many as fit.
  const nameLabels = (id, count, most, above) => ({ color: cssValue("faint"), fontSize: 10, formatter: (name) => clip(name, most),
    interval: Math.max(Math.ceil((12.5 * count) / Math.max(byId(id).clientHeight - above, 50)) - 1, 0) });
  const clip = (text, most) => (text.length > most ? "…" + text.slice(-most + 1) : text);

  // --- matrices ---------------------------------------------------------------------------------------------
  const decoded = new Map();
  const matrixOf = (run, metric) => {
    const key = `${run} ${metric}`;
    if (!decoded.has(key)) decoded.set(key, decode(data.runs[run], metric));
    return decoded.get(key);
  };
  function decode(run, metric) {
    const packed = run.metrics[metric];
    if (!packed) return null;
    const raw = Uint8Array.from(atob(packed.codes), (c) => c.charCodeAt(0));
    const view = new DataView(raw.buffer);
    const count = raw.length / 2;
    const scaled = new Float64Array(count); // NaN, -Infinity (a zero on a log scale), Infinity, or the value or its log10
    const span = packed.high > packed.low ? packed.high - packed.low : 1;
    for (let i = 0; i < count; i++) {
      const code = view.getUint16(2 * i, true);
      scaled[i] = code === MISSING ? NaN : code === INFINITE ? Infinity
        : code === ZERO ? (packed.linear ? 0 : -Infinity) : packed.low + ((code - 1) / (LAST - 1)) * span;
    }
    return { scaled, columns: packed.columns, edges: run.edges[packed.edges], linear: packed.linear };
  }
  // The columns in the chosen range of steps, averaged to as many as a panel can show, per element if chosen.
  function windowOf(run, metric) {
    const matrix = matrixOf(run, metric);
    if (!matrix) return null;
    const { edges, columns } = matrix;
    const chosen = [];
    for (let c = 0; c < columns; c++) if (edges[c + 1] > state.from && edges[c] <= state.to) chosen.push(c);
    if (!chosen.length) return null;
    const layers = data.layers[data.runs[run].layers];
    const kept = drawnLayers(layers, matrix), count = kept.length;
    const shown = Math.min(chosen.length, WIDEST, Math.max(NARROWEST, Math.floor(CELLS / count)));
    const values = new Float64Array(count * shown), starts = [], ends = [];
    for (let b = 0; b < shown; b++) {
      const first = Math.floor((b * chosen.length) / shown), last = Math.floor(((b + 1) * chosen.length) / shown) - 1;
      starts.push(edges[chosen[first]]);
      ends.push(edges[chosen[last] + 1] - 1);
      kept.forEach((layer, row) => {
        values[row * shown + b] = joined(matrix.scaled, layer * columns, chosen, first, last) - elementOffset(layers, metric, layer);
      });
    }
    return { values, starts, ends, count, shown, names: kept.map((layer) => layers.names[layer]), linear: matrix.linear };
  }
  // The layers without those that were never called and have no value.
  function drawnLayers(layers, { scaled, columns }) {
    const every = layers.names.map((_, layer) => layer);
    const isKnown = (layer) => scaled.subarray(layer * columns, (layer + 1) * columns).some((value) => !Number.isNaN(value));
    const kept = every.filter((layer) => layers.calls[layer] > 0 || isKnown(layer));
    return kept.length ? kept : every;
  }
  function joined(scaled, offset, chosen, first, last) {
    let sum = 0, n = 0, zero = false;
    for (let i = first; i <= last; i++) {
      const value = scaled[offset + chosen[i]];
      if (value === Infinity) return Infinity;
      if (value === -Infinity) zero = true;
      else if (!Number.isNaN(value)) { sum += value; n++; }
    }
    return n ? sum / n : zero ? -Infinity : NaN;
  }
  function elementOffset(layers, metric, layer) {
    if (!state.perElement || !data.metrics[metric].size) return 0;
    return 0.5 * Math.log10(Math.max(layers[data.metrics[metric].size][layer], 1));
  }
  function say(value, linear) {
    if (value === undefined || Number.isNaN(value)) return t("not recorded");
    if (value === Infinity) return t("not finite");
    if (value === -Infinity) return t("exactly 0");
    return mark(linear ? value.toPrecision(3) : (10 ** value).toExponential(2));
  }
  const saySpan = (first, last) => (last > first ? t("steps", count(first), count(last)) : t("step", count(first)));
  function epochOf(run, step) {
    const starts = data.runs[run].epochs;
    let epoch = 0;
    while (epoch < starts.length && starts[epoch] <= step) epoch++;
    return epoch ? t("epoch", epoch) : "";
  }
  function columnAt(view, step) {
    let column = 0;
    while (column < view.shown - 1 && view.starts[column + 1] <= step) column++;
    return column;
  }

  // --- heatmaps ---------------------------------------------------------------------------------------------
  const state = { metric: "", runs: [0, -1], perElement: false, from: 0, to: 0, step: 0, layer: 0 };
  const views = [null, null];
  const SIDES = ["left", "right"];

  function drawHeat() {
    if (!data.runs.length) return;
    const described = data.metrics[state.metric];
    let low = Infinity, high = -Infinity;
    state.runs.forEach((run, side) => {
      views[side] = run < 0 ? null : windowOf(run, state.metric);
      for (const value of views[side] ? views[side].values : []) {
        if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
      }
    });
    if (!(high > low)) { high = Number.isFinite(low) ? low + 1 : 1; low = Number.isFinite(low) ? low : 0; }
    if (described.signed) { high = Math.max(Math.abs(low), Math.abs(high)); low = -high; }
    state.runs.forEach((run, side) => drawPanel(side, run, low, high, described));
    byId("metric-title").textContent = titleOf(described);
    byId("metric-reading").textContent = described.reading;
    byId("per-element").disabled = !described.size;
    moveCursor(state.step, state.layer);
  }
  const titleOf = (described) => {
    const title = state.perElement && described.size ? described.per_element : described.title;
    return described.linear ? title : t("log10", title);
  };

  function drawPanel(side, run, low, high, described) {
    const figure = byId(`${SIDES[side]}-figure`);
    figure.hidden = run < 0;
    if (run < 0) return;
    byId(`${SIDES[side]}-title`).textContent = data.runs[run].label;
    const chart = chartAt(SIDES[side]), view = views[side];
    if (!view) {
      chart.setOption({ title: { text: t("not recorded"), left: "center", top: "middle",
        textStyle: { color: cssValue("faint"), fontSize: 14, fontWeight: "normal" } } }, true);
      return;
    }
    chart.setOption(heatOption(view, run, low, high, described), true);
    chart.dispatchAction({ type: "takeGlobalCursor", key: "brush", brushOption: { brushType: "lineX", brushMode: "single" } });
  }
  function cellsOf(view) {
    const cells = [];
    for (let layer = 0; layer < view.count; layer++) {
      for (let column = 0; column < view.shown; column++) {
        const value = view.values[layer * view.shown + column];
        if (Number.isFinite(value)) cells.push([column, layer, value]);
        else if (!Number.isNaN(value)) {
          cells.push({ value: [column, layer, 0], visualMap: false, itemStyle: { color: value > 0 ? theme().nonfinite : theme().zero } });
        }
      }
    }
    return cells;
  }
  // Labels at round steps: each at the column that holds the step, which may begin before it.
  function roundSteps(view, most) {
    const first = view.starts[0], last = view.starts[view.shown - 1];
    const rough = Math.max((last - first) / most, 1), power = 10 ** Math.floor(Math.log10(rough));
    const apart = [1, 2, 5, 10].find((times) => times * power >= rough * 0.999) * power;
    const labels = new Map();
    for (let step = Math.ceil(first / apart) * apart, column = 0; step <= last; step += apart) {
      while (column + 1 < view.shown && view.starts[column + 1] <= step) column += 1;
      labels.set(column, count(step));
    }
    return labels;
  }
  function heatOption(view, run, low, high, described) {
    const narrow = byId("left").clientWidth < 420;
    const base = axisStyle(), rounded = roundSteps(view, narrow ? 5 : 8);
    const digits = (value) => mark(described.linear ? String(+value.toPrecision(3)) : `10^${value.toFixed(1)}`);
    return {
      animation: false,
      aria: { enabled: true, label: { description: t("cells", titleOf(described), data.runs[run].label, view.count, view.shown) } },
      grid: { left: narrow ? 92 : 112, right: 12, top: 8, bottom: 78, show: true, backgroundColor: theme().missing, borderWidth: 0 },
      xAxis: { type: "category", data: view.starts.map(count), name: t("step axis"), nameLocation: "middle", nameGap: 24, ...base,
        axisLabel: { ...base.axisLabel, interval: (column) => rounded.has(column), formatter: (_, column) => rounded.get(column) ?? "" },
        splitLine: { show: false }, axisPointer: { show: true, type: "line", lineStyle: { color: "#ffffff", width: 1, type: "solid" }, label: { show: false } } },
      yAxis: { type: "category", data: view.names, inverse: true, ...base, splitLine: { show: false },
        axisLabel: nameLabels("left", view.count, narrow ? 14 : 18, 86) },
      visualMap: { type: "continuous", min: low, max: high, dimension: 2, orient: "horizontal", left: "center", bottom: 0, itemWidth: 12,
        itemHeight: narrow ? 110 : 170, inRange: { color: described.signed ? theme().diverging : data.colours }, text: [digits(high), digits(low)], calculable: false, textStyle: { color: cssValue("faint"), fontSize: 11 } },
      brush: { xAxisIndex: 0, brushType: false, transformable: false, throttleType: "debounce", throttleDelay: 200,
        brushStyle: { color: "rgba(255,255,255,0.25)", borderColor: "#ffffff", borderWidth: 1 }, inBrush: {}, outOfBrush: {} },
      toolbox: { show: false },
      tooltip: { trigger: "item", transitionDuration: 0, ...tooltipStyle(), formatter: (hit) => {
        if (Array.isArray(hit) || !hit.value) return ""; // the cursor line set by the other panel; the readout shows its value
        const [column, layer] = hit.value;
        return lines([view.names[layer], `${saySpan(view.starts[column], view.ends[column])}${epochOf(run, view.starts[column])}`,
          say(view.values[layer * view.shown + column], view.linear)]);
      } },
      series: [{ type: "heatmap", data: cellsOf(view), progressive: 0, emphasis: { disabled: true }, itemStyle: { borderWidth: 0 } }],
    };
  }

  // --- the cursor: one step and one layer, moved by mouse, slider or arrow keys -------------------------------
  function moveCursor(step, layer, from) {
    const view = views[0] || views[1];
    if (!view) return;
    state.step = Math.min(Math.max(step, state.from), state.to);
    state.layer = Math.min(Math.max(layer, 0), view.count - 1);
    byId("step").value = state.step;
    byId("layer").value = state.layer;
    byId("step-value").textContent = count(state.step);
    byId("layer-value").textContent = view.names[state.layer];
    const readings = [];
    state.runs.forEach((run, side) => {
      const panel = views[side];
      if (run < 0 || !panel) return;
      const column = columnAt(panel, state.step), layerHere = Math.min(state.layer, panel.count - 1);
      readings.push(`${data.runs[run].label}: ${panel.names[layerHere]}, ${saySpan(panel.starts[column], panel.ends[column])}` +
        `${epochOf(run, panel.starts[column])}: ${say(panel.values[layerHere * panel.shown + column], panel.linear)}`);
      if (side !== from) {
        const chart = chartAt(SIDES[side]);
        const [x, y] = chart.convertToPixel({ seriesIndex: 0 }, [column, layerHere]);
        chart.dispatchAction({ type: "updateAxisPointer", currTrigger: "mousemove", x, y });
      }
    });
    byId("readout").replaceChildren(...lines(readings).children);
    drawProfile();
  }
  function follow(side) {
    const chart = chartAt(SIDES[side]);
    let waiting = null;
    chart.getZr().on("mousemove", (event) => {
      const view = views[side], point = [event.offsetX, event.offsetY];
      if (!view || !chart.containPixel({ gridIndex: 0 }, point)) return;
      if (!waiting) requestAnimationFrame(() => { const [step, layer] = waiting; waiting = null; moveCursor(step, layer, side); });
      const [column, layer] = chart.convertFromPixel({ gridIndex: 0 }, point);
      waiting = [view.starts[Math.min(Math.max(column, 0), view.shown - 1)], layer];
    });
    chart.on("brushEnd", (event) => {
      const area = event.areas[0], view = views[side];
      if (!area || !view) return;
      const [first, last] = area.coordRange.map((column) => Math.min(Math.max(Math.round(column), 0), view.shown - 1));
      chart.dispatchAction({ type: "brush", areas: [] });
      if (last > first) chooseSteps(view.starts[first], view.ends[last]);
    });
    const box = byId(SIDES[side]);
    box.addEventListener("dblclick", () => chooseSteps(0, data.last_step));
    box.addEventListener("keydown", (event) => {
      const view = views[side];
      if (!view) return;
      const column = columnAt(view, state.step);
      const to = (c) => view.starts[Math.min(Math.max(c, 0), view.shown - 1)];
      const leap = event.shiftKey ? 10 : 1;
      const moves = {
        ArrowLeft: () => moveCursor(to(column - leap), state.layer), ArrowRight: () => moveCursor(to(column + leap), state.layer),
        ArrowUp: () => moveCursor(state.step, state.layer - leap), ArrowDown: () => moveCursor(state.step, state.layer + leap),
        Home: () => moveCursor(state.from, state.layer), End: () => moveCursor(to(view.shown), state.layer),
        Escape: () => chooseSteps(0, data.last_step),
      };
      if (!moves[event.key]) return;
      event.preventDefault();
      moves[event.key]();
    });
  }
  function chooseSteps(from, to) {
    state.from = Math.max(0, Math.min(from, to));
    state.to = Math.min(data.last_step, Math.max(from, to));
    byId("from").value = state.from;
    byId("to").value = state.to;
    byId("step").min = state.from;
    byId("step").max = state.to;
    drawHeat();
  }

  // --- the depth profile ------------------------------------------------------------------------------------
  function drawProfile() {
    const shown = SIDES.map((_, side) => side).filter((side) => state.runs[side] >= 0 && views[side]);
    if (!shown.length) return;
    const longest = shown.map((side) => views[side]).reduce((a, b) => (b.count > a.count ? b : a));
    const same = shown.every((side) => views[side].names.join("\n") === longest.names.join("\n"));
    const described = data.metrics[state.metric], series = [];
    for (const side of shown) {
      const view = views[side], column = columnAt(view, state.step), here = [], medians = [];
      for (let layer = 0; layer < view.count; layer++) {
        const row = view.values.subarray(layer * view.shown, (layer + 1) * view.shown);
        const known = Array.from(row).filter((value) => Number.isFinite(value)).sort((a, b) => a - b);
        here.push([Number.isFinite(row[column]) ? row[column] : null, layer]);
        medians.push([known.length ? known[known.length >> 1] : null, layer]);
      }
      const name = data.runs[state.runs[side]].label;
      const looks = state.runs.map((other) => (other < 0 ? "" : colourOf(data.runs[other].look)));
      const lineColour = side && looks[0] === looks[1] ? theme().palette[4] : looks[side]; // two seeds of a model
      series.push(lineOf(`${name}, ${saySpan(view.starts[column], view.ends[column])}`, here, lineColour, 2, "solid", true));
      series.push(lineOf(t("median", name), medians, lineColour, 1, "dashed", false));
    }
    const base = axisStyle(), title = titleOf(described);
    chartAt("profile").setOption({
      animation: false,
      aria: { enabled: true, label: { description: t("profile", title, count(state.step)) } },
      legend: { top: 0, left: 0, orient: "vertical", itemGap: 3, itemHeight: 8, textStyle: { color: ink(), fontSize: 11 }, formatter: (name) => clip(name, 46) },
      grid: { left: 112, right: 16, top: 20 * series.length + 6, bottom: 46 },
      xAxis: { type: "value", scale: true, name: described.linear ? t("value") : "log10", nameLocation: "middle", nameGap: 26, ...base },
      yAxis: { type: "category", inverse: true, data: same ? longest.names : longest.names.map((_, i) => t("layer", i + 1)), ...base,
        splitLine: { show: false }, axisLabel: nameLabels("profile", longest.count, 18, 20 * series.length + 52) },
      tooltip: { trigger: "axis", axisPointer: { type: "line" }, ...tooltipStyle(), formatter: (hits) => lines([
        hits.length ? longest.names[hits[0].value[1]] : "",
        ...hits.map((hit) => `${hit.seriesName}: ${say(hit.value[0] === null ? NaN : hit.value[0], described.linear)}`)]) },
      series,
    }, true);
  }
  const lineOf = (name, points, lineColour, width, dash, dots) => ({
    name, type: "line", data: points, showSymbol: dots, symbolSize: 4, itemStyle: { color: lineColour },
    lineStyle: { color: lineColour, width, type: dash }, emphasis: { disabled: true },
  });

  // --- curves over epochs -----------------------------------------------------------------------------------
  function drawCurves() {
    data.curves.forEach((curve, place) => {
      const base = axisStyle(), series = [];
      curve.groups.forEach((group, i) => {
        const lineColour = colourOf(group.look), dash = group.look.dash;
        if (group.low) {
          const band = { type: "line", stack: `band ${i}`, stackStrategy: "all", symbol: "none", lineStyle: { opacity: 0 }, silent: true, tooltip: { show: false }, emphasis: { disabled: true } };
          series.push({ ...band, name: `low ${i}`, data: group.low });
          series.push({ ...band, name: `band ${i}`, data: group.high.map((high, e) => (high === null ? null : high - group.low[e])), areaStyle: { color: lineColour, opacity: 0.16 } });
          for (const seed of group.seeds) {
            series.push({ type: "line", name: `seed ${i}`, data: seed, symbol: "none", lineStyle: { color: lineColour, width: 0.7, opacity: 0.6 }, silent: true, emphasis: { disabled: true } });
          }
        }
        if (group.rest) {
          series.push({ name: t("mean of the others").replace("{group}", group.label), type: "line", data: group.rest, symbol: "none", itemStyle: { color: lineColour }, lineStyle: { color: lineColour, width: 1.2, type: [1, 3] }, emphasis: { disabled: true } });
        }
        series.push({ name: group.label, type: "line", data: group.mean, symbolSize: 4, showSymbol: group.mean.length < 2, itemStyle: { color: lineColour }, lineStyle: { color: lineColour, width: 2, type: dash }, emphasis: { disabled: true } });
      });
      const names = curve.groups.flatMap((group) => (group.rest ? [group.label, t("mean of the others").replace("{group}", group.label)] : [group.label]));
      chartAt(`curve-${place}`).setOption({
        animation: false,
        aria: { enabled: true, label: { description: t("curve", curve.title, names.join(", ")) } },
        legend: { data: names, top: 0, left: 0, itemHeight: 8, textStyle: { color: ink(), fontSize: 11 }, formatter: (name) => clip(name, 40) },
        grid: { left: 46, right: 14, top: 20 + 18 * Math.ceil(names.length / 3), bottom: 42 },
        xAxis: { type: "category", data: curve.places, name: t(`${curve.unit} axis`), nameLocation: "middle", nameGap: 26, ...base, splitLine: { show: false } },
        yAxis: { type: "value", min: curve.unit === "epoch" ? 0 : null, scale: curve.unit === "step", max: curve.share ? 1 : null, ...base, axisLabel: { ...base.axisLabel, formatter: (value) => mark(String(value)) } },
        tooltip: { trigger: "axis", ...tooltipStyle(), formatter: (hits) => lines([`${t(`${curve.unit} axis`)} ${hits[0].axisValue}`,
          ...curve.groups.map((group) => `${group.label}: ${group.said[hits[0].dataIndex] || "–"}`)]) },
        series,
      }, true);
    });
  }

  // --- the controls -----------------------------------------------------------------------------------------
  function fillControls() {
    for (const [name, metric] of Object.entries(data.metrics)) byId("metric").append(option(name, `${name.replaceAll("_", " ")}: ${metric.title}`));
    data.runs.forEach((run, i) => {
      byId("run-left").append(option(i, run.label));
      byId("run-right").append(option(i, run.label));
    });
    byId("run-right").append(option(-1, t("none")));
    state.metric = byId("metric").value;
    state.runs = [0, data.second];
    byId("run-left").value = "0";
    byId("run-right").value = String(data.second);
    state.to = data.last_step;
    byId("to").value = state.to;
    byId("to").max = byId("from").max = byId("step").max = data.last_step;
    byId("layer").max = Math.max(...data.layers.map((layers) => layers.names.length)) - 1;
  }
  function listen() {
    byId("metric").addEventListener("change", (event) => { state.metric = event.target.value; drawHeat(); });
    SIDES.forEach((side, i) => byId(`run-${side}`).addEventListener("change", (event) => { state.runs[i] = Number(event.target.value); drawHeat(); resize(); }));
    byId("per-element").addEventListener("change", (event) => { state.perElement = event.target.checked; drawHeat(); });
    const span = () => chooseSteps(Number(byId("from").value) || 0, byId("to").value === "" ? data.last_step : Number(byId("to").value));
    byId("from").addEventListener("change", span);
    byId("to").addEventListener("change", span);
    byId("all-steps").addEventListener("click", () => chooseSteps(0, data.last_step));
    byId("step").addEventListener("input", (event) => moveCursor(Number(event.target.value), state.layer));
    byId("layer").addEventListener("input", (event) => moveCursor(state.step, Number(event.target.value)));
    SIDES.forEach((_, side) => follow(side));
  }
  function drawAll() {
    if (data.runs.length) drawHeat();
    drawCurves();
  }
  const resize = () => charts.forEach((chart) => { if (chart.getDom().clientWidth) chart.resize(); });
  // The browser prints the canvases as they are at this moment: redraw at once, in light colours and the paper's size.
  function print(now) {
    printing = now;
    resize();
    drawAll();
    charts.forEach((chart) => chart.getZr().flush());
  }
  function choose(name) {
    root.dataset.theme = name;
    byId("theme").textContent = name === "dark" ? t("Light") : t("Dark");
    for (const kind of ["zero", "missing", "nonfinite"]) root.style.setProperty(`--${kind}`, data.themes[name][kind]);
  }

  const system = matchMedia("(prefers-color-scheme: dark)");
  choose(system.matches ? "dark" : "light");
  system.addEventListener("change", () => { choose(system.matches ? "dark" : "light"); drawAll(); });
  byId("theme").addEventListener("click", () => { choose(dark() ? "light" : "dark"); drawAll(); });
  if (data.runs.length) { fillControls(); listen(); }
  drawAll();
  let settled = 0;
  addEventListener("resize", () => { clearTimeout(settled); settled = setTimeout(resize, 80); });
  matchMedia("print").addEventListener("change", (event) => print(event.matches));
  root.dataset.ready = String(Math.round(performance.now()));
})();
