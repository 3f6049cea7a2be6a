"use strict";
// The browser of training samples: a step, a group of it, its completions.
(() => {
  const { data, make, textOf, chipsOf, partsOf } = page;

  function sampleCard(record, meanings) {
    const box = make("article");
    const chips = make("div");
    chips.append(...chipsOf(record));
    box.append(chips, textOf(record.pieces, record.completion), ...partsOf(record, meanings));
    return box;
  }

  function browse(root) {
    const { samples: steps, meanings } = data.stages[Number(root.dataset.stage)];
    const slider = root.querySelector("input");
    const [groups, order] = root.querySelectorAll("select");
    const groupOf = (record) => String(record.group ?? record.prompt);

    function showGroup() {
      let records = steps[Number(slider.value)].records.filter((r) => groupOf(r) === groups.value);
      if (order.value === "reward") records = [...records].sort((a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity));
      root.querySelector(".prompt").textContent = records.length ? records[0].prompt : "";
      const truth = root.querySelector(".truth");
      if (truth) truth.replaceChildren(...(records.length && records[0].truth ? textOf(records[0].truth).childNodes : []));
      root.querySelector(".cards").replaceChildren(...records.map((record) => sampleCard(record, meanings)));
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

  document.querySelectorAll("[data-samples]").forEach(browse);
})();
