"use strict";
// What the page's scripts share: the data, elements, figures and cards. Text from the run enters the page through textContent only.
const page = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);

  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const figure = (value) =>
    typeof value === "number" ? Number(value.toPrecision(4)).toString().replace("-", "\u2212") : "\u2013";

  // A text in pieces of one kind each; without pieces, the whole text.
  function textOf(pieces, whole) {
    const text = make("pre", "", pieces ? "" : whole);
    if (pieces) text.append(...pieces.map(([kind, piece]) => make("span", kind, piece)));
    return text;
  }

  function table(heads, rows) {
    const [box, head, body] = [make("table"), make("tr"), make("tbody")];
    head.append(...heads.map((name) => make("th", "", name)));
    for (const cells of rows) {
      const row = make("tr");
      row.append(...cells.map((cell) => (cell instanceof Node ? cell : make("td", "", cell))));
      heads.forEach((name, i) => { row.children[i].dataset.label = name; });
      body.append(row);
    }
    box.append(make("thead"), body);
    box.firstChild.append(head);
    return box;
  }

  const CUT = { length: "cut off at the length limit", error: "failed while it was written" };

  function chipsOf(record) {
    const chips = [];
    const chip = (text, kind) => chips.push(make("span", `chip ${kind || ""}`, text));
    chip(record.reward === null || record.reward === undefined ? "unscored" : `reward ${figure(record.reward)}`);
    if (typeof record.advantage === "number") {
      chip(`advantage ${figure(record.advantage)}`, record.advantage > 0 ? "up" : record.advantage < 0 ? "down" : "");
    }
    if (record.right) chip(`${record.right[0]} of ${record.right[1]} right`);
    if (CUT[record.stop]) chip(CUT[record.stop], "why");
    if (record.why) chip(String(record.why), "why");
    return chips;
  }

  // What the rewards say one by one, and the parts of their scores with what they mean.
  function partsOf(record, meanings) {
    const parts = Object.entries(record.parts || {});
    const whole = parts.filter(([name]) => !(name in meanings) || !meanings[name].part);
    const inside = parts.filter(([name]) => name in meanings && meanings[name].part);
    const shown = [];
    if (whole.length > 1 || (whole.length && whole[0][1] !== record.reward)) {
      shown.push(make("p", "note", whole.map(([name, value]) => `${name} ${figure(value)}`).join(" \u00b7 ")));
    }
    if (inside.length) {
      const details = make("details", "parts");
      const holder = make("div", "scroll");
      holder.append(table(["Part", "", "Says"], inside.map(([name, value]) => [name, figure(value), meanings[name].says])));
      details.append(make("summary", "", `Parts of the score (${inside.length})`), holder);
      shown.push(details);
    }
    return shown;
  }

  return { data, make, figure, table, textOf, chipsOf, partsOf };
})();
