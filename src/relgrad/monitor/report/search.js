"use strict";
// Trees of workflows: a circle a workflow, and beside the tree what is known of the one that was clicked.
(() => {
  const { data, make, figure, table } = page;
  const [STEP, ROW, EDGE] = [34, 64, 26];

  const svg = (name, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };

  // Leaves side by side, every other workflow above the middle of its edits.
  function placed(nodes) {
    const children = nodes.map(() => []);
    for (const node of nodes) if (node.parent !== null) children[node.parent].push(node.number);
    const places = [];
    let next = 0;
    const place = (number, depth) => {
      for (const child of children[number]) place(child, depth + 1);
      const xs = children[number].map((child) => places[child].x);
      places[number] = { x: xs.length ? (Math.min(...xs) + Math.max(...xs)) / 2 : next++, y: depth };
    };
    place(0, 0);
    return { places, width: Math.max(next, 1), height: Math.max(...places.map((p) => p.y)) + 1 };
  }

  function colour(node, low, high) {
    if (node.score === null) return "var(--well)";
    const share = high > low ? (node.score - low) / (high - low) : 1;
    return `color-mix(in srgb, var(--good) ${Math.round(100 * share)}%, var(--bad))`;
  }

  function course(node) {
    const drawing = svg("svg", { width: 240, height: 60, role: "img", "aria-label": "Q over iterations" });
    const points = node.history.filter((point) => point[2] !== null);
    if (points.length < 2) return null;
    const [xs, ys] = [points.map((p) => p[0]), points.map((p) => p[2])];
    const scale = (value, values, size) => (Math.max(...values) > Math.min(...values) ? (value - Math.min(...values)) / (Math.max(...values) - Math.min(...values)) : 0.5) * size;
    const line = points.map((p) => `${4 + scale(p[0], xs, 230)},${54 - scale(p[2], ys, 48)}`).join(" ");
    drawing.append(svg("polyline", { points: line }));
    return drawing;
  }

  function executions(node) {
    return node.executions.map((one) => {
      const details = make("details");
      const judged = one.why || (one.right ? "right" : "wrong");
      details.append(make("summary", "", `${one.problem}: ${one.answer || "no answer"}, ${judged}`));
      for (const call of one.calls) details.append(make("pre", "", `${call.operator} ${call.prompt}\n${call.text}`));
      return details;
    });
  }

  function show(panel, node, tree) {
    panel.replaceChildren(make("h3", "", `Workflow ${node.number}`), make("pre", "", node.workflow));
    if (node.parent !== null) panel.append(make("p", "quiet", `Edit of workflow ${node.parent}: ${node.edit}`));
    if (node.same_as !== null) panel.append(make("p", "quiet", `Answers the same as workflow ${node.same_as}`));
    panel.append(table(["Figure", ""], [
      ["Score", `${figure(node.score)} \u00b1 ${figure(node.error)}`],
      ["Accuracy", figure(node.accuracy)],
      ["Cost of an execution", figure(node.cost)],
      ["Executions", `${node.trials}, of which ${node.failed} failed`],
      ["N, Q", `${node.n}, ${figure(node.q)}`],
      ["Prior", figure(node.prior)],
      ["Log-probabilities", `parent ${figure(node.select_logp)}, edit ${figure(node.edit_logp)}`],
      ["Pareto front", tree.front.includes(node.number) ? "on it" : "behind it"],
    ]));
    const drawing = course(node);
    if (drawing) panel.append(make("h4", "", "Q over iterations"), drawing);
    for (const failure of new Set(node.failures)) panel.append(make("p", "note", failure));
    panel.append(make("h4", "", "Executions"), ...executions(node));
  }

  for (const box of document.querySelectorAll("[data-tree]")) {
    const tree = data.trees[Number(box.dataset.tree)];
    const [frame, panel] = box.children;
    const { places, width, height } = placed(tree.nodes);
    const scores = tree.nodes.map((node) => node.score).filter((score) => score !== null);
    const drawing = svg("svg", { width: width * STEP + 2 * EDGE, height: height * ROW + EDGE, tabindex: 0 });
    const at = (number) => [EDGE + places[number].x * STEP, EDGE + places[number].y * ROW];
    for (const node of tree.nodes) {
      if (node.parent === null) continue;
      const [[x1, y1], [x2, y2]] = [at(node.parent), at(node.number)];
      drawing.append(svg("line", { x1, y1, x2, y2 }));
    }
    let chosen = null;
    const choose = (number) => {
      if (chosen !== null) circles[chosen].classList.remove("chosen");
      chosen = number;
      circles[number].classList.add("chosen");
      show(panel, tree.nodes[number], tree);
    };
    const circles = tree.nodes.map((node) => {
      const [cx, cy] = at(node.number);
      const circle = svg("circle", { cx, cy, r: 6 + Math.min(8, Math.sqrt(node.trials)), "data-node": node.number });
      circle.style.fill = colour(node, Math.min(...scores), Math.max(...scores));
      if (node.number === tree.best) circle.classList.add("best");
      const title = svg("title", {});
      title.textContent = `${node.number}: ${node.workflow}`;
      circle.append(title);
      circle.addEventListener("click", () => choose(node.number));
      drawing.append(circle);
      return circle;
    });
    drawing.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      choose((chosen + step + tree.nodes.length) % tree.nodes.length);
    });
    frame.append(drawing);
    choose(tree.best);
  }
})();
