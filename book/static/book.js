/* For screen readers and the keyboard: names where those of the theme differ from what is on the
   page, and places to stop at. */
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
    document.querySelectorAll(".cell_output figure, div.math").forEach((one) => {
      if (one.scrollWidth > one.clientWidth) one.setAttribute("tabindex", "0");
      else one.removeAttribute("tabindex");
    });
  };
  window.addEventListener("load", reach);
  window.addEventListener("resize", reach);
  document.addEventListener("DOMContentLoaded", () => {
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
