"use strict";
// Draws the charts, runs the sample browser and plays the films of texts filling in. Text from the run enters the page through textContent only.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const drawn = [];

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (i) => css(`--c${(i % 6) + 1}`);
  const faint = (hex, alpha) => {
    const n = parseInt(hex.slice(1), 16);
    return `rgba(${n >> 16}, ${(n >> 8) & 255}, ${n & 255}, ${alpha})`;
  };
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const figure = (value) =>
    typeof value === "number" ? Number(value.toPrecision(4)).toString().replace("-", "\u2212") : "\u2013";

  // Plotly reads a little markup in names; a metric's name is plain text.
  const plainName = (name) => name.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function traces(chart) {
    const out = [];
    const hover = chart.percent ? "%{y:.1%}" : "%{y:.4~g}";
    chart.series.forEach((s, i) => {
      const line = colour(i);
      const base = { x: s.x, name: plainName(s.name), type: "scatter", hovertemplate: hover };
      if (chart.kind === "points") {
        const gap = (side) => s.y.map((y, j) => (y === null || side[j] === null ? 0 : Math.abs(side[j] - y)));
        out.push({ ...base, y: s.y, mode: "lines+markers", line: { color: line, width: 2 }, marker: { size: 8, color: line },
          error_y: { type: "data", symmetric: false, array: gap(s.high), arrayminus: gap(s.low), color: line, thickness: 1.6, width: 5 } });
        return;
      }
      if (chart.kind === "stack") {
        out.push({ ...base, y: s.y, mode: "lines", stackgroup: "one", line: { color: line, width: 1 }, fillcolor: faint(line, 0.35) });
        return;
      }
      if (s.low) {
        const edge = { ...base, mode: "lines", line: { width: 0, color: line }, hoverinfo: "skip", hovertemplate: undefined };
        out.push({ ...edge, y: s.low }, { ...edge, y: s.high, fill: "tonexty", fillcolor: faint(line, 0.13) });
      }
      if (s.raw) out.push({ ...base, y: s.raw, mode: "lines", line: { color: faint(line, 0.3), width: 1 }, hoverinfo: "skip", hovertemplate: undefined });
      const few = s.x.length < 2;
      out.push({ ...base, y: s.y, mode: few ? "markers" : "lines", line: { color: line, width: 2 }, marker: { color: line, size: 7 } });
    });
    return out;
  }

  function layout(chart) {
    const axis = { gridcolor: css("--grid"), zeroline: false, linecolor: css("--line"), tickcolor: css("--line"), automargin: true, fixedrange: true };
    return {
      margin: { l: 8, r: 10, t: 10, b: 8 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "x unified",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--soft") },
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink"), size: 12 } },
      xaxis: { ...axis, showgrid: false, nticks: 6, ...(chart.x === "step" ? { tickformat: ",d", hoverformat: ",d" } : { tickformat: ".1f", hoverformat: ".2f" }), title: { text: chart.x, font: { size: 11 }, standoff: 4 } },
      yaxis: { ...axis, ...scale(chart) },
    };
  }

  function scale(chart) {
    if (chart.log) return { type: "log", dtick: 1, exponentformat: "power" };
    const values = chart.series.flatMap((s) => [s.y, s.low || [], s.high || [], s.raw || []].flat()).filter((v) => v !== null);
    const low = values.reduce((a, b) => Math.min(a, b), Infinity);
    const high = values.reduce((a, b) => Math.max(a, b), -Infinity);
    const flat = low === high && low !== 0; // Plotly would put a constant of 1e-5 between -1 and 1
    return {
      nticks: 5, tickformat: chart.percent ? ".3~%" : Math.max(-low, high) < 1e-3 && (low || high) ? ".2~e" : undefined,
      range: flat ? [Math.min(0, 2 * low), Math.max(0, 2 * low)] : undefined,
      rangemode: chart.kind === "stack" || chart.percent ? "tozero" : "normal",
    };
  }

  function paint(plot, chart) {
    return Plotly.react(plot, traces(chart), layout(chart), { displayModeBar: false, responsive: true });
  }

  function card(chart) {
    const box = make("figure", "card");
    box.style.margin = "0";
    box.dataset.chart = chart.id;
    box.append(make("h4", "", chart.title));
    if (chart.note) box.append(make("p", "note", chart.note));
    if (chart.series.length > 1) {
      const legend = make("div", "legend");
      chart.series.forEach((s, i) => {
        const item = make("span");
        const key = make("i");
        key.style.background = `var(--c${(i % 6) + 1})`;
        item.append(key, make("span", "", s.name));
        legend.append(item);
      });
      box.append(legend);
    }
    const plot = make("div", "plot");
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", chart.title);
    box.append(plot);
    return [box, plot];
  }

  function fill(holder) {
    const charts = data.stages[Number(holder.dataset.stage)][holder.dataset.charts];
    for (const chart of charts) {
      const [box, plot] = card(chart);
      holder.append(box);
      drawn.push([plot, chart]);
    }
    return drawn.slice(drawn.length - charts.length);
  }

  async function paintAll(pairs) {
    for (const [plot, chart] of pairs) {
      await new Promise((next) => setTimeout(next, 0));
      await paint(plot, chart);
    }
  }

  function sampleCard(record) {
    const box = make("article");
    const chips = make("div");
    const chip = (text, kind) => chips.append(make("span", `chip ${kind || ""}`, text));
    chip(record.reward === null || record.reward === undefined ? "unscored" : `reward ${figure(record.reward)}`);
    if (typeof record.advantage === "number") {
      chip(`advantage ${figure(record.advantage)}`, record.advantage > 0 ? "up" : record.advantage < 0 ? "down" : "");
    }
    for (const [name, value] of Object.entries(record.parts || {})) chip(`${name} ${figure(value)}`);
    if (record.stop) chip(`stop: ${record.stop}`);
    if (record.why) chip(String(record.why), "why");
    box.append(chips, make("pre", "", record.completion));
    return box;
  }

  function browse(root) {
    const steps = data.stages[Number(root.dataset.stage)].samples;
    const slider = root.querySelector("input");
    const [groups, order] = root.querySelectorAll("select");
    const groupOf = (record) => String(record.group ?? record.prompt);

    function showGroup() {
      let records = steps[Number(slider.value)].records.filter((r) => groupOf(r) === groups.value);
      if (order.value === "reward") records = [...records].sort((a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity));
      root.querySelector(".prompt").textContent = records.length ? records[0].prompt : "";
      root.querySelector(".cards").replaceChildren(...records.map(sampleCard));
    }
    function showStep() {
      const { step, records } = steps[Number(slider.value)];
      root.querySelector("output").textContent = step;
      slider.setAttribute("aria-valuetext", `step ${step}`);
      const names = [...new Set(records.map(groupOf))];
      groups.replaceChildren(...names.map((name, i) => {
        const option = make("option", "", `${i + 1} of ${names.length}`);
        option.value = name;
        return option;
      }));
      showGroup();
    }
    slider.addEventListener("input", showStep);
    groups.addEventListener("change", showGroup);
    order.addEventListener("change", showGroup);
    showStep();
  }

  function picture(frame) {
    const masked = new Set(frame.masked);
    const filled = new Set(frame.filled);
    const text = make("pre");
    text.append(...(frame.cells || [...frame.text]).map((cell, i) => {
      const sure = frame.confidence[i];
      if (masked.has(i)) return make("span", "hole", cell);
      if (typeof sure !== "number") return make("span", "given", cell);
      const span = make("span", filled.has(i) ? "cell fresh" : "cell", cell);
      span.style.setProperty("--doubt", `${Math.round(100 * (1 - sure))}%`);
      span.title = `probability ${figure(sure)}`;
      return span;
    }));
    return text;
  }

  function doing(film, frame) {
    const what = frame.masked.length ? `${frame.masked.length} masked` : `${frame.filled.length} filled`;
    return `step ${frame.step} of ${film.frames[film.frames.length - 1].step}, ${what}`;
  }

  function cinema(root) {
    const groups = data.stages[Number(root.dataset.stage)].films;
    const [slider, button] = [root.querySelector("input"), root.querySelector("button")];
    const [texts, speed] = root.querySelectorAll("select");
    let timer = null;

    function show() {
      const at = Number(slider.value);
      root.querySelector("output").textContent = `${at + 1} of ${Number(slider.max) + 1}`;
      root.querySelector(".cards").replaceChildren(...groups[Number(texts.value)].films.map((film) => {
        const frame = film.frames[Math.min(at, film.frames.length - 1)];
        const box = make("article");
        if (film.step !== null) box.append(make("span", "chip", film.step ? `after step ${film.step}` : "before training"));
        box.append(make("span", "chip", doing(film, frame)), picture(frame));
        return box;
      }));
    }
    function pause() {
      clearTimeout(timer);
      timer = null;
      button.textContent = "Play";
    }
    function play() {
      button.textContent = "Pause";
      timer = setTimeout(() => {
        slider.value = Number(slider.value) + 1;
        show();
        if (slider.value === slider.max) pause();
        else play();
      }, 500 / Number(speed.value));
    }
    function choose() {
      pause();
      slider.max = Math.max(...groups[Number(texts.value)].films.map((film) => film.frames.length)) - 1;
      slider.value = 0;
      show();
    }
    texts.replaceChildren(...groups.map((group, i) => {
      const option = make("option", "", `${i + 1} of ${groups.length}`);
      option.value = i;
      return option;
    }));
    button.addEventListener("click", () => {
      if (timer !== null) return pause();
      if (slider.value === slider.max) slider.value = 0;
      show();
      play();
    });
    slider.addEventListener("input", () => { pause(); show(); });
    texts.addEventListener("change", choose);
    choose();
  }

  document.querySelectorAll("[data-samples]").forEach(browse);
  document.querySelectorAll("[data-films]").forEach(cinema);
  const visible = [];
  document.querySelectorAll("[data-charts]").forEach((holder) => {
    const hidden = holder.closest("details:not([open])");
    if (!hidden) visible.push(...fill(holder));
    else hidden.addEventListener("toggle", () => paintAll(fill(holder)), { once: true });
  });
  dark.addEventListener("change", () => paintAll(drawn));
  paintAll(visible).then(() => { document.documentElement.dataset.ready = "yes"; });
})();
