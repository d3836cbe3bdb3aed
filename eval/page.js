"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const hidden = new Set();
  const options = { responsive: true, displayModeBar: false };

  const draw = (block) => {
    const choice = block.querySelector("select").value;
    const box = block.querySelector(".panels");
    const panels = figures[block.dataset.figure][choice];
    while (box.children.length > panels.length) box.lastElementChild.remove();
    while (box.children.length < panels.length) box.append(document.createElement("div"));
    panels.forEach((panel, place) => {
      const data = panel.data.map((trace) => ({ ...trace, visible: !hidden.has(trace.legendgroup) }));
      Plotly.react(box.children[place], data, panel.layout, options);
    });
    block.querySelectorAll("[data-choice]").forEach((part) => {
      part.hidden = part.dataset.choice !== choice;
    });
  };

  const blocks = [...document.querySelectorAll("[data-figure]")];
  blocks.forEach((block) => {
    block.querySelector("select").addEventListener("change", () => draw(block));
    draw(block);
  });

  document.querySelectorAll(".legend button").forEach((button) => {
    button.addEventListener("click", () => {
      const group = button.dataset.group;
      const name = hidden.delete(group) ? "true" : (hidden.add(group), "false");
      document.querySelectorAll(".legend button").forEach((other) => {
        if (other.dataset.group === group) other.setAttribute("aria-pressed", name);
      });
      blocks.forEach(draw);
    });
  });
})();
