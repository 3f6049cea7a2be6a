"use strict";
// Films: a text filling in, or a trajectory from noise to text.
(() => {
  const { data, make, figure, table, textOf, chipsOf, partsOf } = page;

  const cellsOf = (frame) => frame.cells || [...frame.text];
  const visible = (cell) => ({ "": "\u00b7", " ": "\u2423", "\n": "\u23ce" })[cell] || cell.replace(/\n/g, "\u23ce");

  function picture(film, at) {
    const frame = film.frames[at];
    const [masked, filled, hidden] = [new Set(frame.masked), new Set(frame.filled), new Map(film.hidden)];
    const text = make("pre", film.frames.some((f) => f.cells) ? "tokens" : "");
    text.append(...cellsOf(frame).map((cell, i) => {
      const sure = frame.confidence[i];
      const kinds = [masked.has(i) ? "hole" : typeof sure !== "number" ? (film.source === "text" ? "given" : "noise") : "cell"];
      if (filled.has(i)) kinds.push("fresh");
      if (!masked.has(i) && hidden.has(i)) kinds.push(hidden.get(i) === cell ? "right" : "wrong");
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

  // The finished text with what was hidden in its holes; nothing where that is not known.
  function truthOf(film) {
    if (!film.hidden.length) return [];
    const hidden = new Map(film.hidden);
    const cells = cellsOf(film.frames[film.frames.length - 1]);
    const pieces = cells.map((cell, i) => (hidden.has(i) ? ["hidden", hidden.get(i)] : ["given", cell]));
    return [make("h4", "", "Hidden truth"), textOf(pieces)];
  }

  function rightIn(film, frame) {
    const cells = cellsOf(frame);
    const right = film.hidden.filter(([i, text]) => !frame.masked.includes(i) && cells[i] === text).length;
    return film.hidden.length ? `, ${right} of ${film.hidden.length} right` : "";
  }

  function since(film, position, at) {
    const steps = film.frames.slice(0, at + 1).filter((f) => f.filled.includes(position)).map((f) => f.step);
    const last = `written at step ${steps[steps.length - 1]}`;
    return steps.length > 1 ? `${last}, first at step ${steps[0]}` : last;
  }

  function doing(film, frame) {
    const [masked, filled] = [`${frame.masked.length} masked`, frame.filled.length];
    const where = `step ${frame.step} of ${film.frames[film.frames.length - 1].step}, `;
    if (film.source === "text") return where + (frame.masked.length ? masked : `${filled} filled`) + rightIn(film, frame);
    if (!frame.step) return where + (frame.masked.length ? "all masked" : "noise");
    return where + `${filled} jumped` + (frame.masked.length ? `, ${masked}` : "");
  }

  function jumpsAt(film, at) {
    const frame = film.frames[at];
    const [before, after] = [cellsOf(film.frames[Math.max(at - 1, 0)]), cellsOf(frame)];
    return frame.filled.map((i, k) => ({ position: i, from: before[i], to: after[i], sure: frame.confidence[i], chance: (frame.chance || [])[k] }));
  }

  function jumpTable(film, at) {
    const code = (cell) => {
      const box = make("td");
      box.append(make("code", "", visible(cell)));
      return box;
    };
    const rows = jumpsAt(film, at).map((jump) => [
      String(jump.position + 1), code(jump.from), code(jump.to), figure(jump.sure), figure(jump.chance)]);
    return table(["Position", "From", "To", "Probability of the token", "of the jump"], rows);
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
    const details = make("details", "jumps");
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

  function panel(film, go, meanings) {
    const box = make("article");
    if (film.step !== null) box.append(make("span", "chip", film.step ? `after step ${film.step}` : "before training"));
    const does = make("span", "chip");
    box.append(does, ...(film.scored ? chipsOf(film) : []));
    let text = make("pre");
    const [beside, moved] = film.source === "text" ? [[], () => {}] : trajectory(film, go);
    box.append(text, ...truthOf(film), ...beside, ...(film.scored ? partsOf(film, meanings) : []));
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
    const { films: groups, meanings } = data.stages[Number(root.dataset.stage)];
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
      panels = films.map((film) => panel(film, go, meanings));
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

  document.querySelectorAll("[data-films]").forEach(cinema);
})();
