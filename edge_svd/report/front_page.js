"use strict";
// One plan at a time behind tabs; without this script all of them stand below each other.
(() => {
  const box = document.querySelector(".plans");
  const panels = box ? [...box.querySelectorAll(".plan")] : [];
  if (panels.length < 2) return;
  const list = document.createElement("div");
  list.className = "tabs";
  list.setAttribute("role", "tablist");
  list.setAttribute("aria-label", "Plan of which target");
  const tabs = panels.map((panel) => {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.id = panel.id + "-tab";
    tab.textContent = panel.dataset.label;
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", panel.id);
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-labelledby", tab.id);
    tab.addEventListener("click", () => show(tab, false));
    list.append(tab);
    return tab;
  });
  const show = (chosen, focus) => {
    tabs.forEach((tab, i) => {
      const on = tab === chosen;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      panels[i].hidden = !on;
    });
    if (focus) chosen.focus();
  };
  list.addEventListener("keydown", (event) => {
    const at = tabs.indexOf(document.activeElement);
    const last = tabs.length - 1;
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    show(tabs[(to + tabs.length) % tabs.length], true);
  });
  box.before(list);
  box.classList.add("tabbed");
  const wanted = panels.findIndex((panel) => "#" + panel.id === decodeURIComponent(location.hash));
  show(tabs[wanted >= 0 ? wanted : Math.floor(panels.length / 2)], false);
})();
