/* Names that screen readers announce, where those of the theme differ from what is on the page. */
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
  document.addEventListener("DOMContentLoaded", () => {
    // A visible text is the better name: "Parameters of this run", "Search".
    document
      .querySelectorAll('summary[aria-label="Toggle hidden content"], .search-button-field')
      .forEach((one) => one.removeAttribute("aria-label"));
    document
      .querySelectorAll('[role="doc-biblioentry"]')
      .forEach((one) => one.setAttribute("role", "listitem"));
    // A figure that is wider than a phone scrolls, also with the keyboard.
    const narrow = window.matchMedia("(max-width: 600px)");
    const reach = () => {
      document.querySelectorAll(".cell_output figure").forEach((figure) => {
        if (narrow.matches) figure.setAttribute("tabindex", "0");
        else figure.removeAttribute("tabindex");
      });
    };
    narrow.addEventListener("change", reach);
    reach();
    document.querySelectorAll(".theme-switch-button").forEach((button) => {
      hush();
      // Icons are drawn, and named, by a script that may come later.
      new MutationObserver(hush).observe(button, { childList: true });
    });
  });
})();
