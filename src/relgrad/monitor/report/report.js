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
      xaxis: { ...axis, showgrid: false, nticks: 6, ...(chart.x === "probability" ? { tickformat: ".1f", hoverformat: ".2f" } : { tickformat: ",d", hoverformat: ",d" }), title: { text: chart.x, font: { size: 11 }, standoff: 4 } },
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
    chips.append(...rewardChips(record));
    box.append(chips, make("pre", "", record.completion));
    return box;
  }

  function rewardChips(record) {
    const chips = [];
    const chip = (text, kind) => chips.push(make("span", `chip ${kind || ""}`, text));
    chip(record.reward === null || record.reward === undefined ? "unscored" : `reward ${figure(record.reward)}`);
    if (typeof record.advantage === "number") {
      chip(`advantage ${figure(record.advantage)}`, record.advantage > 0 ? "up" : record.advantage < 0 ? "down" : "");
    }
    for (const [name, value] of Object.entries(record.parts || {})) chip(`${name} ${figure(value)}`);
    if (record.stop) chip(`stop: ${record.stop}`);
    if (record.why) chip(String(record.why), "why");
    return chips;
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

  // ---- films: a text filling in, or a trajectory from noise to text

  const cellsOf = (frame) => frame.cells || [...frame.text];
  const visible = (cell) => ({ "": "\u00b7", " ": "\u2423", "\n": "\u23ce" })[cell] || cell.replace(/\n/g, "\u23ce");

  function picture(film, at) {
    const frame = film.frames[at];
    const [masked, filled] = [new Set(frame.masked), new Set(frame.filled)];
    const text = make("pre", film.frames.some((f) => f.cells) ? "tokens" : "");
    text.append(...cellsOf(frame).map((cell, i) => {
      const sure = frame.confidence[i];
      const kinds = [masked.has(i) ? "hole" : typeof sure !== "number" ? (film.source === "text" ? "given" : "noise") : "cell"];
      if (filled.has(i)) kinds.push("fresh");
      if (cell.includes("\n")) kinds.push("newline");
      if (typeof frame.end === "number" && i > frame.end) kinds.push("beyond");
      const span = make("span", kinds.join(" "), cell);
      if (kinds[0] === "cell") {
        span.style.setProperty("--doubt", `${Math.round(100 * (1 - sure))}%`);
        span.title = film.source === "text" ? `probability ${figure(sure)}` : `position ${i + 1}, ${since(film, i, at)}, probability ${figure(sure)}`;
      }
      return span;
    }));
    return text;
  }

  function since(film, position, at) {
    const steps = film.frames.slice(0, at + 1).filter((f) => f.filled.includes(position)).map((f) => f.step);
    const last = `written at step ${steps[steps.length - 1]}`;
    return steps.length > 1 ? `${last}, first at step ${steps[0]}` : last;
  }

  function doing(film, frame) {
    const [masked, filled] = [`${frame.masked.length} masked`, frame.filled.length];
    const where = `step ${frame.step} of ${film.frames[film.frames.length - 1].step}, `;
    if (film.source === "text") return where + (frame.masked.length ? masked : `${filled} filled`);
    if (!frame.step) return where + (frame.masked.length ? "all masked" : "noise");
    return where + `${filled} jumped` + (frame.masked.length ? `, ${masked}` : "");
  }

  function jumpsAt(film, at) {
    const frame = film.frames[at];
    const [before, after] = [cellsOf(film.frames[Math.max(at - 1, 0)]), cellsOf(frame)];
    return frame.filled.map((i, k) => ({ position: i, from: before[i], to: after[i], sure: frame.confidence[i], chance: (frame.chance || [])[k] }));
  }

  function jumpTable(film, at) {
    const table = make("table");
    const head = make("tr");
    for (const name of ["Position", "From", "To", "Probability of the token", "of the jump"]) head.append(make("th", "", name));
    const body = make("tbody");
    for (const jump of jumpsAt(film, at)) {
      const row = make("tr");
      row.append(make("td", "", String(jump.position + 1)));
      for (const cell of [jump.from, jump.to]) row.append(make("td", "")), row.lastChild.append(make("code", "", visible(cell)));
      for (const value of [jump.sure, jump.chance]) row.append(make("td", "", figure(value)));
      body.append(row);
    }
    table.append(make("thead"), body);
    table.firstChild.append(head);
    return table;
  }

  // Positions from left to right, steps from top to bottom, a mark where a position jumped.
  function jumpMap(film, go) {
    const draw = (tag, attributes) => {
      const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
      return node;
    };
    const [positions, rows] = [cellsOf(film.frames[0]).length, film.frames.length - 1];
    const final = new Map(film.frames.flatMap((frame, at) => frame.filled.map((i) => [i, at])));
    const box = draw("svg", { class: "map", viewBox: `0 0 ${positions} ${rows}`, preserveAspectRatio: "none", role: "img",
      "aria-label": `${final.size} of ${positions} positions jumped; the table below has the jumps of a step` });
    box.style.height = `${Math.max(48, Math.min(rows * 8, 200))}px`;
    const now = draw("rect", { class: "now", x: 0, width: positions, height: 1 });
    box.append(now);
    const groups = film.frames.slice(1).map((frame, row) => {
      const group = draw("g", {});
      for (const jump of jumpsAt(film, row + 1)) {
        const mark = draw("rect", { x: jump.position + 0.05, y: row + 0.1, width: 0.9, height: 0.8,
          class: final.get(jump.position) === row + 1 ? "last" : "early", "fill-opacity": 0.3 + 0.7 * Math.sqrt(jump.sure || 0) });
        const title = draw("title", {});
        title.textContent = `step ${frame.step}, position ${jump.position + 1}: ${visible(jump.from)} \u2192 ${visible(jump.to)}, probability ${figure(jump.sure)}`;
        mark.append(title);
        group.append(mark);
      }
      box.append(group);
      return group;
    });
    box.addEventListener("click", (event) => {
      const { top, height } = box.getBoundingClientRect();
      go(Math.min(rows, 1 + Math.floor(((event.clientY - top) / height) * rows)));
    });
    return [box, (at) => {
      now.setAttribute("y", at - 1); // above the picture at the start
      groups.forEach((group, row) => group.classList.toggle("ahead", row + 1 > at));
    }];
  }

  // What a trajectory shows beside its text: [elements, what to do when the step changes].
  function trajectory(film, go) {
    const [box, move] = jumpMap(film, go);
    const jumps = film.frames.reduce((sum, frame) => sum + frame.filled.length, 0);
    const note = make("p", "note", `${jumps} jumps: positions from left to right, steps from top to bottom. Blue: the last of its position; grey: written over later; the paler, the less probable. A click goes to the step.`);
    const details = make("details");
    const [summary, holder] = [make("summary"), make("div", "scroll")];
    details.append(summary, holder);
    const written = make("div", "written");
    written.append(make("h4", "", film.final ? "The finished text" : "The finished text is empty"));
    if (film.final) written.append(make("pre", "final", film.final));
    let shown = 0;
    const list = () => { if (details.open) holder.replaceChildren(jumpTable(film, shown)); };
    details.addEventListener("toggle", list);
    return [[box, note, written, details], (at) => {
      const frame = film.frames[shown = at];
      move(at);
      summary.textContent = `Jumps of step ${frame.step}` + (typeof frame.logp === "number" ? `, log-probability ${figure(frame.logp)}` : "");
      list();
    }];
  }

  function panel(film, go) {
    const box = make("article");
    if (film.step !== null) box.append(make("span", "chip", film.step ? `after step ${film.step}` : "before training"));
    const does = make("span", "chip");
    box.append(does, ...(film.scored ? rewardChips(film) : []));
    let text = make("pre");
    const [beside, moved] = film.source === "text" ? [[], () => {}] : trajectory(film, go);
    box.append(text, ...beside);
    return [box, (step) => {
      const at = Math.min(step, film.frames.length - 1);
      const fresh = picture(film, at);
      text.replaceWith(fresh);
      text = fresh;
      does.textContent = doing(film, film.frames[at]);
      moved(at);
    }];
  }

  function cinema(root) {
    const groups = data.stages[Number(root.dataset.stage)].films;
    const [slider, button] = [root.querySelector("input"), root.querySelector("button")];
    const [texts, speed] = root.querySelectorAll("select");
    let [timer, panels] = [null, []];

    function show() {
      const [at, longest] = [Number(slider.value), groups[Number(texts.value)].films.find((f) => f.frames.length - 1 === Number(slider.max))];
      const steps = longest.source !== "text";
      const where = steps ? `${longest.frames[at].step} of ${longest.frames[Number(slider.max)].step}` : `${at + 1} of ${Number(slider.max) + 1}`;
      root.querySelector("output").textContent = where;
      slider.setAttribute("aria-valuetext", `${steps ? "step" : "frame"} ${where}`);
      for (const [, update] of panels) update(at);
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
    function go(at) {
      pause();
      slider.value = at;
      show();
    }
    function choose() {
      const { prompt, films } = groups[Number(texts.value)];
      slider.max = Math.max(...films.map((film) => film.frames.length)) - 1;
      panels = films.map((film) => panel(film, go));
      root.querySelector(".cards").replaceChildren(...panels.map(([box]) => box));
      if (root.querySelector(".prompt")) root.querySelector(".prompt").textContent = prompt;
      go(0);
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
    root.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step && !event.target.closest("input, select, .scroll") && !event.altKey && !event.ctrlKey && !event.metaKey) go(Number(slider.value) + step);
    });
    slider.addEventListener("input", () => { pause(); show(); });
    texts.addEventListener("change", choose);
    choose();
  }

  document.querySelectorAll("[data-samples]").forEach(browse);
  document.querySelectorAll("[data-films]").forEach(cinema);
  const seen = [];
  document.querySelectorAll("[data-charts]").forEach((holder) => {
    const hidden = holder.closest("details:not([open])");
    if (!hidden) seen.push(...fill(holder));
    else hidden.addEventListener("toggle", () => paintAll(fill(holder)), { once: true });
  });
  dark.addEventListener("change", () => paintAll(drawn));
  paintAll(seen).then(() => { document.documentElement.dataset.ready = "yes"; });
})();
