"use strict";
// Draws the charts, and says when the page is complete.
(() => {
  const { data, make } = page;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const drawn = [];

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (i) => css(`--c${(i % 6) + 1}`);
  const faint = (hex, alpha) => {
    const n = parseInt(hex.slice(1), 16);
    return `rgba(${n >> 16}, ${(n >> 8) & 255}, ${n & 255}, ${alpha})`;
  };

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

  const seen = [];
  document.querySelectorAll("[data-charts]").forEach((holder) => {
    const hidden = holder.closest("details:not([open])");
    if (!hidden) seen.push(...fill(holder));
    else hidden.addEventListener("toggle", () => paintAll(fill(holder)), { once: true });
  });
  dark.addEventListener("change", () => paintAll(drawn));
  paintAll(seen).then(() => { document.documentElement.dataset.ready = "yes"; });
})();
