/* For screen readers and the keyboard: names where those of the theme differ from what is on the
   page, places to stop at, and words explained. */
(function () {
  "use strict";
  // The theme's icons are pictures of what the button's own label says already.
  const hush = () => {
    document.querySelectorAll(".theme-switch-button .theme-switch").forEach((icon) => {
      icon.removeAttribute("title");
      icon.removeAttribute("aria-labelledby");
      icon.setAttribute("aria-hidden", "true");
      icon.querySelectorAll("title").forEach((title) => title.remove());
    });
  };
  // What is wider than a phone scrolls, and must do so with the keyboard too.
  const reach = () => {
    document.querySelectorAll("div.math").forEach((one) => {
      if (one.scrollWidth > one.clientWidth) one.setAttribute("tabindex", "0");
      else one.removeAttribute("tabindex");
    });
  };
  window.addEventListener("load", reach);
  window.addEventListener("resize", reach);
  /* A word of the glossary is explained where it stands: to the mouse, to the keyboard, and to a
     finger, whose second tap follows the link. Escape closes. */
  const tip = document.createElement("div");
  Object.assign(tip, { id: "term-tip", role: "tooltip", hidden: true });
  const explain = (link) => {
    tip.textContent = link.dataset.said;
    tip.hidden = false;
    link.setAttribute("aria-describedby", tip.id);
    const box = link.getBoundingClientRect();
    const left = Math.min(box.left, document.body.clientWidth - tip.offsetWidth - 8);
    tip.style.left = Math.max(8, left) + scrollX + "px";
    tip.style.top = box.bottom + scrollY + "px";
  };
  const close = (event) => {
    if (!tip.contains(event.relatedTarget)) tip.hidden = true;
  };
  const explainTerms = () => {
    document.querySelectorAll('a[title][href*="glossary.html#term-"]').forEach((link) => {
      link.dataset.said = link.title;
      link.removeAttribute("title");
      ["mouseenter", "focus"].forEach((name) => link.addEventListener(name, () => explain(link)));
      ["mouseleave", "blur"].forEach((name) => link.addEventListener(name, close));
      link.addEventListener("pointerdown", () => {
        link.dataset.first = tip.hidden || tip.textContent !== link.dataset.said;
      });
      link.addEventListener("click", (event) => {
        if (event.pointerType === "touch" && link.dataset.first === "true") event.preventDefault();
      });
    });
    tip.addEventListener("mouseleave", close);
    document.body.append(tip);
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") tip.hidden = true;
  });
  document.addEventListener("DOMContentLoaded", () => {
    explainTerms();
    // A visible text is the better name: "Parameters of this run", "Search".
    document
      .querySelectorAll('summary[aria-label="Toggle hidden content"], .search-button-field')
      .forEach((one) => one.removeAttribute("aria-label"));
    document
      .querySelectorAll('[role="doc-biblioentry"]')
      .forEach((one) => one.setAttribute("role", "listitem"));
    document.querySelectorAll(".theme-switch-button").forEach((button) => {
      hush();
      // Icons are drawn, and named, by a script that may come later.
      new MutationObserver(hush).observe(button, { childList: true });
    });
  });
})();
